"""Few-label accuracy of encoders beside raw pixels: `byol linear` with 1, 5, ... labelled images of each class.

    python -m benchmarks.learning.few_labels NAME=BUNDLE [NAME=BUNDLE ...] --train SRC --test SRC --out FILE.json

Mean and deviation of the test accuracy over random draws of the labelled images; the draws are the same for every row.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from benchmarks.learning.evaluate import raw_pixels
from benchmarks.rows import Row, Rows, byol
from byol.images.open import open_source


def curve(train: Path, test: Path, amounts: tuple[int, ...], draws: int) -> Row:
    """Accuracies in percent from two features files: `all` labels, and of each amount a mean and a deviation."""
    few = [word for amount in amounts for word in ("--labels-per-class", amount)]
    result = json.loads(byol("linear", "--train", train, "--test", test, *few, "--draws", draws, "--json"))
    row: Row = {"all": round(100 * result["top1"], 2)}
    for amount, found in zip(amounts, result["few_labels"], strict=True):
        row[str(amount)] = [round(100 * found[key], 2) for key in ("mean", "deviation")]
    return row


def pixels(parts: dict[str, Path], size: int, work: Path) -> dict[str, Path]:
    """Features files of raw pixels."""
    for part, location in parts.items():
        raw_pixels(open_source(location), size, work / f"raw-{part}.npz")
    return {part: work / f"raw-{part}.npz" for part in parts}


def features(parts: dict[str, Path], bundle: str, stem: Path) -> dict[str, Path]:
    """Features files of a bundle, whose names begin with `stem`."""
    files = {part: stem.with_name(f"{stem.name}-{part}.parquet") for part in parts}
    for part, location in parts.items():
        byol("extract", bundle, location, "--out", files[part], "--json")
    return files


def scored(make: Callable[[], dict[str, Path]], amounts: tuple[int, ...], draws: int) -> Row:
    return curve(**make(), amounts=amounts, draws=draws)


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="NAME=BUNDLE...")
@click.option("--train", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--test", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--labels-per-class", "amounts", multiple=True, type=int, default=(1, 5, 20, 100), show_default=True)
@click.option("--draws", default=5, show_default=True)
@click.option("--raw-size", default=32, show_default=True, help="Side of the raw-pixel baseline's images.")
def main(
    bundles: tuple[str, ...], train: Path, test: Path, out: Path, amounts: tuple[int, ...], draws: int, raw_size: int
) -> None:
    parts = {"train": train, "test": test}
    rows = Rows(out, "benchmarks.learning.few_labels")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        makers = {"raw pixels": partial(pixels, parts, raw_size, work)}
        for name, _, bundle in (words.partition("=") for words in bundles):
            makers[name] = partial(features, parts, bundle, work / name)
        for name, make in makers.items():
            rows.find(name, partial(scored, make, amounts, draws))
    columns = [*map(str, amounts), "all"]
    click.echo(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in rows.rows:
        cells = ["{:.1f} +- {:.1f}".format(*row[c]) if c != "all" else f"{row[c]:.1f}" for c in columns if c in row]
        click.echo(f"| {row['row']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
