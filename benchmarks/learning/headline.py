"""The headline: a preset trained, exported, and scored by weighted kNN through ONNX Runtime, over some seeds.

    python -m benchmarks.learning.headline --train SRC --test SRC --out DIR [--preset NAME] [--seeds 3] [--minutes 9]

The score is top-1 of the exported bundle on the test set with the training set as the bank (k 200, T 0.1), at the last
epoch: nothing is chosen on the test set. `--minutes` stops the training in time, so that a machine lent for less than a
run can do it in pieces: call it again with the same arguments, it continues where it was. Writes DIR/headline.json.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.rows import Row, Rows, byol, start


def train(words: list[object], log: Path, until: float) -> bool:
    """Train or go on training; whether the run is complete."""
    with log.open("a") as stream:
        process = start("byol", "train", *words, "--resume", stderr=stream)
        try:
            process.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it saves the step it is at
            process.wait()
            return False
    if process.returncode != 0:
        raise click.ClickException(f"training failed, see {log}")
    return True


def training_seconds(run: Path, batch_size: int) -> float:
    """Time of the training with kNN and checkpoints, from the speeds noted; of the steps alone in older runs."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "images_per_second" in line]  # kNN before the first step has none
    before = [0, *(line["step"] for line in lines[:-1])]
    speeds = [line.get("wall_images_per_second", line["images_per_second"]) for line in lines]
    parts = [(b["step"] - a) * batch_size / speed for a, b, speed in zip(before, lines, speeds, strict=True)]
    return float(sum(parts))


def score(run: Path, bank: str, test: str, device: str) -> dict[str, Any]:
    """Export, extract both sets, kNN."""
    bundle = run.with_name(f"{run.name}-bundle")
    if not bundle.exists():
        byol("export", run, "--out", bundle)
    options = ("--k", 200, "--temperature", 0.1, "--device", device, "--json")
    result: dict[str, Any] = json.loads(byol("knn", bundle, "--train", bank, "--test", test, *options))
    return result


def scored(run: Path, bank: str, test: str, device: str) -> Row:
    """A finished run: its time in steps, its score and its settings."""
    config = json.loads((run / "config.json").read_text())
    seconds = training_seconds(run, config["config"]["batch_size"])
    return {"training_seconds": round(seconds, 1), "knn": score(run, bank, test, device), "run": config}


@click.command()
@click.option("--train", "bank", required=True, help="Images to train on, labelled for the bank.")
@click.option("--test", required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--preset", default="cifar10-lightly", show_default=True)
@click.option("--seeds", default=1, show_default=True, help="Runs, with seeds 0, 1, ...")
@click.option("--minutes", default=1e6, help="Stop after so long; call again to go on.")
@click.option("--device", default="auto", show_default=True)
@click.argument("more", nargs=-1)
def main(bank: str, test: str, out: Path, preset: str, seeds: int, minutes: float, device: str, more: Any) -> None:
    until = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    rows = Rows(out / "headline.json", "benchmarks.learning.headline", device)
    for seed in range(seeds):
        run = out / f"seed-{seed}"
        words: list[object] = [bank, "--out", run, "--preset", preset, "--seed", seed, "--device", device, *more]
        if not train(words, out / f"seed-{seed}.log", until):
            click.echo(f"seed {seed} is not finished; call again to go on", err=True)
            sys.exit(3)
        rows.find(preset, partial(scored, run, bank, test, device), seed=seed)
    scores = [100 * row["knn"]["top1"] for row in rows.rows if "knn" in row]
    deviation = f" +- {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    click.echo(f"kNN {statistics.mean(scores):.2f}{deviation} % of {len(scores)} seeds" if scores else "no score")


if __name__ == "__main__":
    main()
