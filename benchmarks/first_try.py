"""A newcomer's first try: does `byol train IMAGES --time T`, with no other choice, learn something, and end in time?

    python -m benchmarks.first_try --train SRC --test SRC --out DIR [--time 30m] [--seeds 3] [--labels 100]

For each seed: the forecast of --dry-run, the run, its bundle, and top-1 of kNN and of the linear probe on the test set
with --labels labelled training images a class (drawn once), beside raw pixels and the untrained encoder. Nothing is
chosen on the test set. Finished seeds are kept: call again to go on. Writes DIR/first-try.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.evaluate import byol
from benchmarks.train import command_line, machine
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


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row in a file, which `make` finds if there is none yet; it is shown."""
    if not path.exists():
        path.write_text(json.dumps(make()) + "\n")
    row: dict[str, Any] = json.loads(path.read_text())
    click.echo(json.dumps(row))
    return row


def run_one(data: Path, few: Path, test: str, out: Path, minutes: str, seed: int) -> dict[str, Any]:
    """One seed: what was forecast, what it took, and the accuracies in percent."""
    run, bundle = out / f"seed-{seed}", out / f"seed-{seed}-bundle"
    words = [str(data), "--out", str(run), "--time", minutes, "--seed", str(seed)]
    forecast = json.loads(byol("train", *words, "--dry-run", "--json"))
    began = time.monotonic()
    with (out / f"seed-{seed}.log").open("a") as log:
        subprocess.run([sys.executable, "-m", "byol", "train", *words], stderr=log, check=True)
    took = time.monotonic() - began
    byol("export", run, "--out", bundle)
    steps = json.loads((run / "config.json").read_text())["config"]["max_steps"]
    row = {
        "seed": seed,
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
    rows = [
        kept(out / f"seed-{seed}.json", partial(run_one, data, few, test, out, minutes, seed)) for seed in range(seeds)
    ]
    facts = {"command": command_line("python -m benchmarks.first_try"), "machine": machine("cpu"), "rows": rows}
    (out / "first-try.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
