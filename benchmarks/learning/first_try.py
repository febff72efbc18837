"""A newcomer's first try: does `byol train IMAGES --time T`, with no other choice, learn something, and end in time?

    python -m benchmarks.learning.first_try --train SRC --test SRC --out DIR [--time 30m] [--seeds 3] [--labels 100]

For each seed: the forecast of --dry-run, the run, its bundle, and top-1 of kNN and of the linear probe on the test set
with --labels labelled training images a class (drawn once), beside raw pixels and the untrained encoder. Nothing is
chosen on the test set. Finished seeds are kept: call again to go on. Writes DIR/first-try.json.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.rows import Row, Rows, byol
from byol.images.open import open_source
from byol.images.splits import draw


def labelled(data: Path, count: int, folder: Path) -> Path:
    """A folder of links to `count` images of each class."""
    source = open_source(data)
    if not folder.exists():
        for row in draw(np.array(list(source.labels.take(np.arange(len(source)))), np.str_), count, seed=0).tolist():
            link = folder / source.ids[row]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(data.resolve() / source.ids[row])
    return folder


def run_one(data: Path, few: Path, test: str, out: Path, minutes: str, seed: int) -> Row:
    """One seed: what was forecast, what it took, and the accuracies in percent."""
    run, bundle = out / f"seed-{seed}", out / f"seed-{seed}-bundle"
    words = [str(data), "--out", str(run), "--time", minutes, "--seed", str(seed)]
    forecast = json.loads(byol("train", *words, "--dry-run", "--json"))
    began = time.monotonic()
    with (out / f"seed-{seed}.log").open("a") as log:
        byol("train", *words, log=log)
    took = time.monotonic() - began
    byol("export", run, "--out", bundle)
    steps = json.loads((run / "config.json").read_text())["config"]["max_steps"]
    row: Row = {
        "steps": steps,
        "forecast_steps": forecast["steps"],
        "seconds": round(took, 1),
        "forecast_seconds": round(forecast["decoding_seconds"] + forecast["training_seconds"], 1),
    }
    for task in ("knn", "linear"):
        found = json.loads(byol(task, bundle, "--train", few, "--test", test, "--baselines", "--json"))
        values = {"encoder": found["top1"], **{name: one["top1"] for name, one in found["baselines"].items()}}
        row[task] = {name: round(100 * value, 2) for name, value in values.items()}
    return row


@click.command()
@click.option("--train", "data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--test", required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--time", "minutes", default="30m", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--labels", default=100, show_default=True, help="Labelled images a class.")
def main(data: Path, test: str, out: Path, minutes: str, seeds: int, labels: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    few = labelled(data, labels, out / "labelled")
    rows = Rows(out / "first-try.json", "benchmarks.learning.first_try", goes_on=True)
    for seed in range(seeds):
        rows.find("ours", partial(run_one, data, few, test, out, minutes, seed), seed=seed)


if __name__ == "__main__":
    main()
