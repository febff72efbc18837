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
from byol.serve.commands.evaluation import note_left_out
from byol.serve.commands.options import BUNDLE, device_option

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from byol.images.source import ImageSource
    from byol.serve.evaluate.sets import Evaluation
    from byol.serve.features.read import Features

GRID_QUERIES = 100  # rows of a picture


@click.command()
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--bank", required=True, type=LOCATION, help="Images, or features that `extract` wrote.")
@click.option("--query", required=True, type=LOCATION, help="Images, or features.")
@click.option("--k", type=click.IntRange(min=1), default=8, show_default=True, help="Neighbours of each query.")
@click.option("--grid", type=OutputFile(), help="Also draw them: FILE.png.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per query on stdout, nothing else.")
def neighbors(
    bundle: Path | None, bank: Location, query: Location, k: int, grid: Path | None, device: str, as_json: bool
) -> None:
    """Find the images of --bank nearest to each image of --query, by cosine similarity.

    BUNDLE may be left out when both are features files; --grid needs images.
    """
    from byol import outputs
    from byol.outputs import require_output
    from byol.serve.evaluate.knn import Neighbours
    from byol.serve.evaluate.sets import load_sets, needs_bundle

    if bundle is None and needs_bundle(bank, query):
        raise click.UsageError("name the BUNDLE that encodes the images: byol neighbors BUNDLE --bank SRC --query SRC")
    if grid and (needs_bundle(bank) is None or needs_bundle(query) is None):
        raise click.UsageError("--grid draws images, but --bank or --query is a features file; give the images")
    if grid:
        with of_option("--grid"):
            require_output(grid, outputs.GRID, [bank, query, bundle])
    sets = load_sets(bundle, bank, query, device, progress)
    note_left_out(sets, "--bank", "--query")
    search = Neighbours(sets.train.x, min(k, len(sets.train)), sets.encoder.device if sets.encoder else device)
    note_device(device, search.device, sets.encoder.reason if sets.encoder else search.reason)
    similarity, rows = search(sets.test.x)
    if grid:  # first: whoever reads the lines may stop after a few
        _draw(grid, sets, rows)
    for place in range(len(sets.test)):
        found = _found(sets.train, sets.test, place, similarity[place], rows[place])
        if as_json:
            click.echo(json.dumps(found, allow_nan=False))
        else:
            show_table([(found["id"], " ".join(f"{n['id']} ({n['similarity']:.3f})" for n in found["neighbours"]))])


def _found(bank: Features, query: Features, place: int, similarity: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    neighbours = [
        {"id": bank.ids[row], "label": bank.labels[row], "similarity": round(float(value), 6)}
        for row, value in zip(rows.tolist(), similarity, strict=True)
    ]
    return {"id": query.ids[place], "label": query.labels[place], "neighbours": neighbours}


def _draw(path: Path, sets: Evaluation, rows: np.ndarray) -> None:
    """Queries evenly spread over all, each with its neighbours."""
    import numpy as np

    from byol.images.grid import draw_grid

    bank, queries = map(_pictures, sets.sources, (sets.train, sets.test))
    shown = np.linspace(0, len(sets.test) - 1, min(GRID_QUERIES, len(sets.test)), dtype=int)
    draw_grid(path, [[queries(q), *map(bank, rows[q].tolist())] for q in shown.tolist()], side=64)


def _pictures(source: ImageSource | None, kept: Features) -> Callable[[int], Image.Image]:
    """A function that opens the picture of a row; unreadable pictures of the source have no row."""
    assert source is not None  # --grid is refused where one of the two is a features file
    places = {name: place for place, name in enumerate(source.ids)}
    return lambda row: source.open(places[kept.ids[row]])
