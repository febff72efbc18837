"""Two presets at equal compute, small: which recipe learns more from the same number of pixels?

    python -m benchmarks.learning.rehearsal --train SRC --test SRC --out DIR [--images 10000] [--epochs 50] [-- MORE]

Both train the same encoder on the same images; the first for --epochs, the other until its views have had as many
pixels. MORE goes to both `byol train` commands. Scores are those of the exported bundles (k 200, T 0.1). For tuning,
give a part of the training set as --test. Writes DIR/rehearsal.json.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.learning.headline import score, train, training_seconds
from benchmarks.rows import Row, Rows
from benchmarks.speed.growth import subset
from byol.training.recipes.presets import PRESETS


def pixels_per_image(preset: str, image_size: int) -> tuple[float, int]:
    """Mean pixels of a view over a run, and the size of its first views at this image size."""
    config = PRESETS[preset]()
    start = round(image_size * config.start_size / config.image_size) if config.start_size else image_size
    return config.start_share * start**2 + (1 - config.start_share) * image_size**2, start


def trained(run: Path, words: list[object], batch_size: int, bank: Path, test: str) -> Row:
    """Train and score; how long the steps took."""
    train(words, run.with_name(f"{run.name}.log"), time.monotonic() + 1e6)
    seconds = training_seconds(run, batch_size)
    return {"training_seconds": round(seconds, 1), "knn": score(run, str(bank), test, "auto")}


@click.command()
@click.option("--train", "bank", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--test", required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--presets", nargs=2, default=("cifar10", "cifar10-fast"), show_default=True)
@click.option("--arch", default="timm:resnet10t", show_default=True)
@click.option("--image-size", default=48, show_default=True)
@click.option("--images", default=10_000, show_default=True)
@click.option("--epochs", default=50, show_default=True, help="Of the first preset.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.argument("more", nargs=-1)
def main(bank: Path, test: str, out: Path, presets: tuple[str, str], images: int, epochs: int, **options: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    links = out / "images"
    if not links.exists():
        subset(bank, images, links)
    size, more = options["image_size"], options["more"]
    budget = epochs * pixels_per_image(presets[0], size)[0]
    rows = Rows(out / "rehearsal.json", "benchmarks.learning.rehearsal")
    for preset in presets:
        pixels, start = pixels_per_image(preset, size)
        length = round(budget / pixels)
        run = out / f"{preset}-{options['seed']}"
        words: list[object] = [links, "--out", run, "--preset", preset, "--epochs", length, "--arch", options["arch"]]
        words += ["--stem", "auto", "--image-size", size, "--set", f"start_size={start % size}"]
        words += ["--batch-size", options["batch_size"], "--seed", options["seed"], *more]
        rows.find(preset, partial(trained, run, words, options["batch_size"], bank, test), epochs=length)


if __name__ == "__main__":
    main()
