"""`byol neighbors`: each query's nearest images in a bank, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note_device, progress, show_table
from byol.images.location import Location
from byol.options import LOCATION, OutputFile, of_option
from byol.serve.commands.evaluation import note_left_out, note_nameless
from byol.serve.commands.options import BUNDLE, device_option
from byol.text import printable

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from byol.images.grid import Tile
    from byol.images.source import ImageSource
    from byol.serve.evaluate.sets import Evaluation
    from byol.serve.features.read import Features

GRID_NEIGHBOURS = 20  # of a query in a picture, at most
MOST_SHARED = 100  # images of one id, as of joined archives: all of them are searched for


@click.command()
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--bank", required=True, type=LOCATION, help="Images, or features that `extract` wrote.")
@click.option("--query", required=True, type=LOCATION, help="Images, or features.")
@click.option("--k", type=click.IntRange(min=1), default=8, show_default=True, help="Neighbours of each query.")
@click.option("--exclude-self", is_flag=True, help="Leave out of a query's neighbours the images of its own id.")
@click.option("--grid", type=OutputFile(), help="Draw them instead of listing them: FILE.png.")
@click.option(
    "--grid-rows", type=click.IntRange(1, 500), default=20, show_default=True, help="Queries drawn, evenly spread."
)
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per query on stdout, nothing else.")
def neighbors(
    bundle: Path | None,
    bank: Location,
    query: Location,
    k: int,
    exclude_self: bool,
    grid: Path | None,
    grid_rows: int,
    device: str,
    as_json: bool,
) -> None:
    """Find the images of --bank nearest to each image of --query, by cosine similarity.

    BUNDLE may be left out when both are features files; --grid needs images.
    """
    from byol import outputs
    from byol.outputs import require_output
    from byol.serve.evaluate.sets import load_sets, needs_bundle, open_sets

    if bundle is None and needs_bundle(bank, query):
        raise click.UsageError("name the BUNDLE that encodes the images: byol neighbors BUNDLE --bank SRC --query SRC")
    if grid and (needs_bundle(bank) is None or needs_bundle(query) is None):
        raise click.UsageError("--grid draws images, but --bank or --query is a features file; give the images")
    if grid:
        with of_option("--grid"):
            require_output(grid, outputs.GRID, [bank, query, bundle])
    opened = open_sets(bank, query)
    note_nameless(bundle, opened)
    sets = load_sets(bundle, opened, device, progress)
    note_left_out(sets, "--bank", "--query")
    similarity, rows = _search(sets, k, exclude_self, device)
    if grid:  # first: whoever reads the lines may stop after a few
        shown = _draw(grid, sets, similarity, rows, grid_rows)
        if not as_json:
            show_table([("grid", printable(grid)), ("rows", f"{shown:,} of {len(sets.test):,} queries")])
            return
    for place in range(len(sets.test)):
        found = _found(sets.train, sets.test, place, similarity[place], rows[place])
        if as_json:
            click.echo(json.dumps(found, allow_nan=False))
        else:
            show_table([(found["id"], " ".join(f"{n['id']} ({n['similarity']:.3f})" for n in found["neighbours"]))])


def _search(sets: Evaluation, k: int, exclude_self: bool, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and rows (Q, K) of each query's neighbours, nearest first."""
    from byol.serve.evaluate.knn import Neighbours, without

    bank, query, most = _numbered(sets) if exclude_self else (None, None, 0)
    search = Neighbours(sets.train.x, min(k + most, len(sets.train)), sets.encoder.device if sets.encoder else device)
    computes = sets.encoder or search
    note_device(device, computes.device, computes.reason)
    similarity, rows = search(sets.test.x)
    if bank is None or query is None:
        return similarity, rows
    return without(similarity, rows, bank[rows] == query[:, None], most)


def _numbered(sets: Evaluation) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers for the ids of the bank (N,) and of the queries (Q,), -1 for one that is not in the bank, and how many
    images of the bank share the id of a query at most.
    """
    import numpy as np

    number = {name: row for row, name in enumerate(sets.train.ids)}
    bank, query = (np.array([number.get(name, -1) for name in part.ids]) for part in (sets.train, sets.test))
    known = query[query >= 0]
    if not len(known):
        raise click.UsageError(
            "--exclude-self leaves out the images of the query's own id, but no query's id is in --bank; give --bank "
            "and --query the same folder, or leave it out"
        )
    shared = np.bincount(bank)[known]
    most = int(shared.max())
    if most == len(sets.train):
        raise click.UsageError("--exclude-self leaves nothing of --bank: all of it has the query's own id")
    if most > MOST_SHARED:
        name = sets.train.ids[known[shared.argmax()]]
        raise click.UsageError(
            f"--exclude-self tells images by their ids, but {most:,} of --bank are called {printable(name)}; give each "
            "an id of its own, or leave it out"
        )
    return bank, query, most


def _found(bank: Features, query: Features, place: int, similarity: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    neighbours = [
        {"id": bank.ids[row], "label": bank.labels[row], "similarity": round(float(value), 6)}
        for row, value in zip(rows.tolist(), similarity, strict=True)
    ]
    return {"id": query.ids[place], "label": query.labels[place], "neighbours": neighbours}


def _draw(path: Path, sets: Evaluation, similarity: np.ndarray, rows: np.ndarray, most: int) -> int:
    """Draw some queries, evenly spread over all, each with its neighbours; how many."""
    import numpy as np

    from byol.images.grid import Tile, draw_grid
    from byol.serve.features.places import places_of

    bank, queries = (
        pictures(source, places_of(features, source))
        for source, features in zip(sets.sources, (sets.train, sets.test), strict=True)
        if source is not None  # --grid is refused where one of the two is a features file
    )
    shown = np.linspace(0, len(sets.test) - 1, min(most, len(sets.test)), dtype=int).tolist()
    count = min(GRID_NEIGHBOURS, rows.shape[1])

    def row_of(query: int) -> list[Tile]:
        label = sets.test.labels[query]
        found = zip(rows[query, :count].tolist(), similarity[query], strict=False)
        tiles = [_tile(bank(row), sets.train.labels[row], f"cosine {value:.2f}", label) for row, value in found]
        return [Tile(queries(query), label or ""), *tiles]

    title = (
        f"A sample: {len(shown):,} of {len(sets.test):,} queries (framed), evenly spread, and their {count} nearest of "
        f"{len(sets.train):,} images"
    )
    draw_grid(path, [row_of(query) for query in shown], title)
    return len(shown)


def _tile(image: Image.Image, label: str | None, note: str, asked: str | None) -> Tile:
    """A neighbour; it is wrong when both classes are known and differ."""
    from byol.images.grid import Tile

    return Tile(image, label or "", note, wrong=None not in (label, asked) and label != asked)


def pictures(source: ImageSource, places: np.ndarray) -> Callable[[int], Image.Image]:
    """A function that opens the picture of a row, given where each is in the source."""
    from byol.images.grid import SIDE

    return lambda row: source.open(int(places[row]), 2 * SIDE)
