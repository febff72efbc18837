"""How cost grows: images/s over the number of images and the batch size, and the time to the first step.

    python -m benchmarks.speed.growth DATA --out FILE.json [--image-size 32] [--device cpu]

Subsets are folders of symbolic links. "Cold" has nothing decoded yet, "cached" finds what the cold start left; the
files themselves are in the page cache in both.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.rows import Row, Rows, start
from benchmarks.speed.train import work
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


def first_step(data: Path, home: Path, options: dict[str, Any]) -> Row:
    """Seconds from the start of `byol train` to the end of its first step."""
    with tempfile.TemporaryDirectory() as out:
        words = ["byol", "train", data, "--out", f"{out}/run", "--preset", "cifar10-lightly"]
        words += ["--stem", "auto", "--batch-size", 64, "--lr", 0.12, "--max-steps", 1, "--set", "log_every=1"]
        words += ["--image-size", options["image_size"], "--device", options["device"], "--arch", options["arch"]]
        started = time.perf_counter()
        with start(*words, variables={"BYOL_HOME": str(home)}, stderr=subprocess.PIPE) as process:
            for line in process.stderr or ():
                if line.startswith("step 1/1"):
                    return {"seconds": time.perf_counter() - started}
        raise click.ClickException(f"training ended with {process.returncode}")


def among(data: Path, count: int, folder: Path, options: dict[str, Any]) -> Row:
    """Images/s with so many images."""
    return rate(subset(data, count, folder), options, 64)


def rate(data: Path, options: dict[str, Any], batch: int) -> Row:
    return {"images_per_second": work("ours", data, {**options, "batch_size": batch})}


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=32, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seconds", default=20.0, show_default=True)
def main(data: Path, out: Path, **options: Any) -> None:
    rows = Rows(out, "benchmarks.speed.growth", options["device"], options=options)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "cached"):
            rows.find(f"to the first step, {name}", partial(first_step, data, Path(folder) / "home", options))
        knn = partial(work, "knn", data, {**options, "batch_size": 64})
        rows.find("in-training kNN", lambda: {"percent_of_an_epoch": knn()})
        for count in IMAGES:
            rows.find(f"{count} images, batch 64", partial(among, data, count, Path(folder) / str(count), options))
        for batch in BATCHES:
            rows.find(f"all images, batch {batch}", partial(rate, data, options, batch))
    for row in rows.rows:
        click.echo(f"| {' | '.join(f'{v:.1f}' if isinstance(v, float) else v for v in row.values())} |")


if __name__ == "__main__":
    main()
