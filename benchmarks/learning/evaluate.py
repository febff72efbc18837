"""kNN and linear accuracy of a run's exported encoder, beside its untrained self and raw pixels.

    python -m benchmarks.learning.evaluate RUN --train SRC --test SRC --out DIR

The run must hold `step-00000000.safetensors` (train with `--set keep_every=N`). Both encoders are exported; everything
is measured on the exported artifacts by the `byol` command. Writes DIR/results.json and prints a table.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.rows import Row, Rows, byol
from byol.images.decode import Preprocess, decode
from byol.images.labels import require_labels
from byol.images.open import open_source
from byol.images.source import ImageSource
from byol.serve.evaluate.baselines import pixel_features

KNN = ({"k": 20, "temperature": 0.07}, {"k": 200, "temperature": 0.1})


def raw_pixels(source: ImageSource, size: int, out: Path) -> None:
    """A features file of raw pixels as `--baselines` has them, of whole images where `size` is at most 64."""
    pixels: list[np.ndarray] = []
    transform = Preprocess.for_size(size)
    for index, image in decode(source, transform, least_side=transform.least_side):
        if isinstance(image, Exception):
            raise click.ClickException(f"{source.ids[index]}: {image}")
        pixels.append(image)
    features = pixel_features(np.stack(pixels), size)
    np.savez(out, ids=np.array(source.ids), labels=np.array(require_labels(source)), features=features)


def measure(train: Path, test: Path) -> dict[str, Any]:
    """Accuracies in percent from two features files."""
    row: dict[str, Any] = {}
    for setting in KNN:
        options = ("--k", setting["k"], "--temperature", setting["temperature"])
        result = json.loads(byol("knn", "--train", train, "--test", test, *options, "--json"))
        row[f"knn_k{setting['k']}_t{setting['temperature']}"] = round(100 * result["top1"], 2)
    result = json.loads(byol("linear", "--train", train, "--test", test, "--json"))
    row["linear"], row["l2"] = round(100 * result["top1"], 2), result["l2"]
    return row


def baseline(parts: dict[str, Path], size: int, out: Path) -> Row:
    for part, location in parts.items():
        raw_pixels(open_source(location), size, out / f"raw-{part}.npz")
    return measure(out / "raw-train.npz", out / "raw-test.npz")


def exported(name: str, checkpoint: Path, parts: dict[str, Path], out: Path) -> Row:
    """The accuracies of a checkpoint's bundle, and its manifest."""
    byol("export", checkpoint, "--out", out / name)
    for part, location in parts.items():
        byol("extract", out / name, location, "--out", out / f"{name}-{part}.parquet", "--json")
    manifest = json.loads((out / name / "manifest.json").read_text())
    return {**measure(out / f"{name}-train.parquet", out / f"{name}-test.parquet"), "manifest": manifest}


@click.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--train", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--test", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--raw-size", default=32, show_default=True, help="Side of the raw-pixel baseline's images.")
def main(run: Path, train: Path, test: Path, out: Path, raw_size: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    parts = {"train": train, "test": test}
    config = json.loads((run / "config.json").read_text())
    rows = Rows(out / "results.json", "benchmarks.learning.evaluate", config=config)
    rows.find("raw pixels", partial(baseline, parts, raw_size, out))
    for name, checkpoint in (("untrained", run / "step-00000000.safetensors"), ("trained", run)):
        rows.find(name, partial(exported, name, checkpoint, parts, out))
    for row in rows.rows:
        click.echo("  ".join(f"{key} {value}" for key, value in row.items() if key != "manifest"))


if __name__ == "__main__":
    main()
