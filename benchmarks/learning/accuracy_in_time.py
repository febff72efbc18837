"""Accuracy after some minutes of training on this machine: `byol train --time` beside lightly's documented BYOL loop.

    pip install -e '.[peers]'
    python -m benchmarks.learning.accuracy_in_time --train SRC --test SRC --out DIR [--minutes N] [--seeds N]

Both see the same images without labels, and train the same encoder at the same size, which is what our recipe takes for
them. Both end as bundles, evaluated by the same commands: kNN (k 20) with all training labels, and a linear probe of
--labels a class. Finished rows are kept: call again to go on. Writes DIR/accuracy-in-time.json.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path

import click
import torch

from benchmarks.learning.first_try import labelled
from benchmarks.rows import Row, Rows, byol
from benchmarks.speed.train_worker import lightly_loop
from byol.images.open import open_source
from byol.run import LAST
from byol.training.checkpoint import Checkpoint, save_checkpoint
from byol.training.config import TrainConfig
from byol.training.model import BYOL

LIGHTLY_BATCH = 256  # of its documentation


def ours(data: Path, out: Path, minutes: float, seed: int) -> Path:
    """The bundle of a run that takes `minutes`, with no other choice made."""
    words = [str(data), "--out", str(out / "run"), "--time", f"{round(60 * minutes)}s", "--seed", str(seed)]
    byol("train", *words)
    byol("export", out / "run", "--out", out / "bundle")
    return out / "bundle"


def lightly(data: Path, out: Path, minutes: float, seed: int) -> Path:
    """The bundle of what lightly's loop has made of our recipe's encoder when the time is over."""
    recipe = json.loads(byol("train", data, "--out", out / "run", "--dry-run", "--json"))["config"]
    config = TrainConfig.from_dict({**recipe, "batch_size": LIGHTLY_BATCH, "device": "cpu"})
    began = time.monotonic()

    def share() -> float:
        return min(1.0, (time.monotonic() - began) / (60 * minutes))

    torch.manual_seed(seed)
    backbone, step = lightly_loop(config, data, lambda: 1 - 0.004 * (math.cos(math.pi * share()) + 1) / 2)
    steps = 0
    while share() < 1:
        step(steps)
        steps += 1
    click.echo(f"lightly: {steps} steps of {LIGHTLY_BATCH}", err=True)
    model = BYOL(config)
    model.online.encoder.load_state_dict(backbone.state_dict())
    facts = {"name": "lightly's loop", "images": len(open_source(data)), "digest": "0" * 16}
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out / LAST, Checkpoint(config, steps, 0, facts, dict(model.state_dict())))
    byol("export", out / LAST, "--out", out / "bundle")
    return out / "bundle"


ROWS = {"ours": ours, "lightly": lightly}


def score(bundle: Path, data: Path, few: Path, test: str) -> dict[str, float]:
    """Top-1 in percent on the test set."""
    knn = json.loads(byol("knn", bundle, "--train", data, "--test", test, "--json"))["top1"]
    linear = json.loads(byol("linear", bundle, "--train", few, "--test", test, "--json"))["top1"]
    return {"knn": round(100 * knn, 2), "linear": round(100 * linear, 2)}


@click.command()
@click.option("--train", "data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--test", required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--labels", default=100, show_default=True, help="Labelled images a class, of the probe.")
def main(data: Path, test: str, out: Path, minutes: float, seeds: int, labels: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    few = labelled(data, labels, out / "labelled")

    def row(name: str, seed: int) -> Row:
        began = time.monotonic()
        bundle = ROWS[name](data, out / f"{name}-{seed}", minutes, seed)
        took = round((time.monotonic() - began) / 60, 1)
        return {"minutes_to_the_bundle": took, **score(bundle, data, few, test)}

    rows = Rows(out / "accuracy-in-time.json", "benchmarks.learning.accuracy_in_time", goes_on=True, minutes=minutes)
    for seed in range(seeds):
        for name in ROWS:
            rows.find(name, partial(row, name, seed), seed=seed)


if __name__ == "__main__":
    main()
