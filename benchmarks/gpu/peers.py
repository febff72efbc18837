"""lightly's documented loop, and ours from the same PNG files with the recipe of the training rows.

python -m benchmarks.gpu.peers --out FILE.json --work DIR [--dry]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import numpy as np
from PIL import Image

from benchmarks.gpu.scale import DRY, FULL, Scale
from benchmarks.rows import Row, Rows
from benchmarks.speed import train_worker
from byol.training.config import TrainConfig
from byol.training.recipes.presets import PRESETS


def pictures(folder: Path, count: int) -> Path:
    """A folder of noise at CIFAR-10's size."""
    random = np.random.default_rng(0)
    (folder / "a").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "a" / f"{number:05d}.png", compress_level=1)
    return folder


def recipe(scale: Scale) -> TrainConfig:
    config = PRESETS["cifar10-fast"]().replace(start_size=0, epochs=1000, device=scale.device)
    return config.replace(**scale.settings)


def ours(scale: Scale, data: Path) -> Row:
    return {"images_per_second": train_worker.ours(recipe(scale), data, scale.loop_seconds)}


def lightly(scale: Scale, data: Path) -> Row:
    return {"images_per_second": train_worker.lightly(recipe(scale), data, scale.loop_seconds)}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--dry", is_flag=True, help="Tiny, on the CPU.")
def main(out: Path, work: Path, dry: bool) -> None:
    scale = DRY if dry else FULL
    data = pictures(work / "png", scale.files)
    rows = Rows(out, "benchmarks.gpu.peers", scale.device)
    rows.find("lightly's documented loop", partial(lightly, scale, data))
    rows.find("ours from the same files", partial(ours, scale, data))


if __name__ == "__main__":
    main()
