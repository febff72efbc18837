"""Few-label accuracy of encoders beside raw pixels: `byol linear` with 1, 5, ... labelled images of each class.

    python -m benchmarks.few_labels NAME=BUNDLE [NAME=BUNDLE ...] --train SRC --test SRC --out FILE.json

Mean and deviation of the test accuracy over random draws of the labelled images; the draws are the same for every row.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.evaluate import byol, raw_pixels
from benchmarks.train import command_line, machine
from byol.images.open import open_source


def curve(train: Path, test: Path, amounts: tuple[int, ...], draws: int) -> dict[str, Any]:
    """Accuracies in percent from two features files: `all` labels, and of each amount a mean and a deviation."""
    few = [word for amount in amounts for word in ("--labels-per-class", amount)]
    result = json.loads(byol("linear", "--train", train, "--test", test, *few, "--draws", draws, "--json"))
    row: dict[str, Any] = {"all": round(100 * result["top1"], 2)}
    for amount, found in zip(amounts, result["few_labels"], strict=True):
        row[str(amount)] = [round(100 * found[key], 2) for key in ("mean", "deviation")]
    return row


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
    rows: dict[str, Any] = {}
    parts = {"train": train, "test": test}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part, location in parts.items():
            raw_pixels(open_source(location), raw_size, work / f"raw-{part}.npz")
        rows["raw pixels"] = curve(work / "raw-train.npz", work / "raw-test.npz", amounts, draws)
        for name, _, bundle in (words.partition("=") for words in bundles):
            files = {part: work / f"{name}-{part}.parquet" for part in parts}
            for part, location in parts.items():
                byol("extract", bundle, location, "--out", files[part], "--json")
            rows[name] = curve(files["train"], files["test"], amounts, draws)
            click.echo(f"{name}: {rows[name]}")
    facts = {"command": command_line("python -m benchmarks.few_labels"), "machine": machine("cpu"), "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=2) + "\n")
    columns = [*map(str, amounts), "all"]
    click.echo(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, row in rows.items():
        cells = [f"{row[c][0]:.1f} +- {row[c][1]:.1f}" if c != "all" else f"{row[c]:.1f}" for c in columns]
        click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
