"""What further kinds of view are worth at equal time: the recipe of these images, one change a row.

    python -m benchmarks.learning.kinds --train SRC --out DIR [--time 20m] [--seeds 1] [--rows NAME ...] [-- MORE]

Rows train by `byol train SRC --time T` and options of their own; MORE goes to all. Scores are the exported bundles':
kNN (k 20) of the training images, each compared with all the others, and a linear probe of some, scored on the
rest. No test set is looked at. Finished rows are kept: call again to go on. Writes DIR/kinds.json.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from benchmarks.learning.first_try import labelled
from benchmarks.rows import Row, Rows, byol
from byol.images.open import open_source

LOCAL, CUTOUT = ["--set", "local_views=2"], ["--set", "cutout_views=1"]
ROWS: dict[str, list[str]] = {
    "two-views": [],
    "kinds": [*LOCAL, *CUTOUT],
    "one-predictor": [*LOCAL, *CUTOUT, "--set", "own_predictors=false"],
    "local": LOCAL,
    "cutout": CUTOUT,
}


def unlabelled(data: Path, few: Path, folder: Path) -> Path:
    """A folder of links to the images that are not among the labelled ones."""
    if not folder.exists():
        taken = set(open_source(few).ids)
        for name in open_source(data).ids:
            if name not in taken:
                link = folder / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(data.resolve() / name)
    return folder


def run_row(data: Path, few: Path, rest: Path, out: Path, minutes: str, seed: int, options: list[str]) -> Row:
    """Train, export and score one row; accuracies in percent."""
    run, bundle = out / "run", out / "bundle"
    out.mkdir(exist_ok=True)
    words = [str(data), "--out", str(run), "--time", minutes, "--seed", str(seed), *options]
    with (out / "train.log").open("a") as log:
        byol("train", *words, log=log)
    byol("export", run, "--out", bundle)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    row: Row = {"options": options, "steps": last["step"], "epochs": last["epoch"]}
    for task, images in (("knn", ["--train", data]), ("linear", ["--train", few, "--test", rest])):
        row[task] = round(100 * json.loads(byol(task, bundle, *images, "--json"))["top1"], 2)
    return row


@click.command()
@click.option("--train", "data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--time", "minutes", default="20m", show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--labels", default=100, show_default=True, help="Labelled images a class, of the probe.")
@click.option("--rows", multiple=True, type=click.Choice(list(ROWS)), default=list(ROWS))
@click.argument("more", nargs=-1)
def main(
    data: Path, out: Path, minutes: str, seeds: int, labels: int, rows: tuple[str, ...], more: tuple[str, ...]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    few = labelled(data, labels, out / "labelled")
    rest = unlabelled(data, few, out / "rest")

    found = Rows(out / "kinds.json", "benchmarks.learning.kinds", goes_on=True)
    for seed in range(seeds):
        for name in rows:
            options = [*ROWS[name], *more]
            found.find(
                name, partial(run_row, data, few, rest, out / f"{name}-{seed}", minutes, seed, options), seed=seed
            )


if __name__ == "__main__":
    main()
