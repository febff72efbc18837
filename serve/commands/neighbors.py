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


@click.command()
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--bank", required=True, type=LOCATION, help="Images, or features that `extract` wrote.")
@click.option("--query", required=True, type=LOCATION, help="Images, or features.")
@click.option("--k", type=click.IntRange(min=1), default=8, show_default=True, help="Neighbours of each query.")
@click.option("--exclude-self", is_flag=True, help="Leave out of a query's neighbours the image of its own id.")
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
    from byol.serve.evaluate.knn import Neighbours

    own = _own_rows(sets) if exclude_self else None
    asked = min(k + (own is not None), len(sets.train))
    search = Neighbours(sets.train.x, asked, sets.encoder.device if sets.encoder else device)
    computes = sets.encoder or search
    note_device(device, computes.device, computes.reason)
    similarity, rows = search(sets.test.x)
    return (similarity, rows) if own is None else _without(similarity, rows, own)


def _without(similarity: np.ndarray, rows: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours (Q, K - 1) without each query's own row; where it is not among them, without the last."""
    import numpy as np

    is_own = rows == own[:, None]
    is_own[~is_own.any(1), -1] = True
    kept = (len(rows), rows.shape[1] - 1)
    return np.reshape(similarity[~is_own], kept), np.reshape(rows[~is_own], kept)


def _own_rows(sets: Evaluation) -> np.ndarray:
    """Where in the bank each query (Q,) is itself, by its id; -1 where it is not."""
    import numpy as np

    place = {name: row for row, name in enumerate(sets.train.ids)}
    own = np.array([place.get(name, -1) for name in sets.test.ids])
    if (own < 0).all():
        raise click.UsageError(
            "--exclude-self leaves out the image of the query's own id, but no query's id is in --bank; give --bank "
            "and --query the same folder, or leave it out"
        )
    if len(sets.train) < 2:
        raise click.UsageError("--exclude-self leaves nothing of a --bank of one image")
    return own


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

    bank, queries = map(pictures, sets.sources, (sets.train, sets.test))
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


def pictures(source: ImageSource | None, kept: Features) -> Callable[[int], Image.Image]:
    """A function that opens the picture of a row; unreadable pictures of the source have no row."""
    from byol.images.grid import SIDE

    assert source is not None  # --grid is refused where one of the two is a features file
    places = {name: place for place, name in enumerate(source.ids)}
    return lambda row: source.open(places[kept.ids[row]], 2 * SIDE)
