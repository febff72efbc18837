"""How cost grows: images/s over the number of images and the batch size, and the time to the first step.

    python -m benchmarks.growth DATA --out FILE.json [--image-size 32] [--device cpu]

Subsets are folders of symbolic links. "Cold" has nothing decoded yet, "cached" finds what the cold start left; the
files themselves are in the page cache in both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.train import command_line, machine, work
from byol.images.open import open_source

IMAGES = (1_000, 10_000, 50_000)
BATCHES = (64, 128, 256, 512, 1024)


def subset(data: Path, count: int, folder: Path) -> Path:
    """A folder of links to `count` images spread over the data."""
    ids = open_source(data).ids
    for place in np.linspace(0, len(ids) - 1, min(count, len(ids)), dtype=int):
        link = folder / ids[int(place)]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(data.resolve() / ids[int(place)])
    return folder


def first_step(data: Path, home: Path, options: dict[str, Any]) -> float:
    """Seconds from the start of `byol train` to the end of its first step."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", "byol", "train", data, "--out", f"{out}/run", "--preset", "cifar10-lightly"]
        words += ["--stem", "auto", "--batch-size", 64, "--lr", 0.12, "--max-steps", 1, "--set", "log_every=1"]
        words += ["--image-size", options["image_size"], "--device", options["device"], "--arch", options["arch"]]
        environment = {**os.environ, "BYOL_HOME": str(home)}
        started = time.perf_counter()
        with subprocess.Popen(list(map(str, words)), env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("step 1/1"):
                    return time.perf_counter() - started
        raise click.ClickException(f"training ended with {process.returncode}")


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=32, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seconds", default=20.0, show_default=True)
def main(data: Path, out: Path, **options: Any) -> None:
    rows: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "cached"):
            rows[f"seconds to first step, {name}"] = first_step(data, Path(folder) / "home", options)
        rows["in-training kNN, % of an epoch's steps"] = work("knn", data, {**options, "batch_size": 64})
        for count in IMAGES:
            part = subset(data, count, Path(folder) / str(count))
            rows[f"images/s, {count} images, batch 64"] = work("ours", part, {**options, "batch_size": 64})
        for batch in BATCHES:
            rows[f"images/s, all images, batch {batch}"] = work("ours", data, {**options, "batch_size": batch})
    out.parent.mkdir(parents=True, exist_ok=True)
    command = command_line("python -m benchmarks.growth")
    facts = {"command": command, "options": options, "machine": machine(options["device"]), "rows": rows}
    out.write_text(json.dumps(facts, indent=2) + "\n")
    for row, value in rows.items():
        click.echo(f"| {row} | {value:.1f} |")


if __name__ == "__main__":
    main()
