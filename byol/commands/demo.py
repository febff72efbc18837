"""`byol demo`: the whole path on real handwritten digits, offline, in a few minutes on a CPU."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import sklearn.datasets  # the `demo` extra; byol.cli reports its absence
import torch  # noqa: F401 - the `train` extra, likewise
from PIL import Image

from byol.files.atomic import atomic_file, contents
from byol.options import Output, of_option
from byol.outputs import require_output_folder
from byol.text import printable, quoted
from byol.training.config import TrainConfig
from byol.training.recipes.presets import PRESETS

TRAIN_IMAGES = 1297  # the other 500 are the test set: digits of other writers
FEW_LABELS, DRAWS = (1, 5), 10  # labels per class, and how often they are drawn
GRID_QUERIES, GRID_NEIGHBOURS = 10, 8


@click.command()
@click.option("--out", type=Output(), default="demo", show_default=True, help="Output folder.")
def demo(out: Path) -> None:
    """Train, export, extract and evaluate on real handwritten digits (offline; under 3 minutes on 2 CPU cores)."""
    with of_option("--out"):
        require_output_folder(out)
    if out.exists() and contents(out):
        raise click.UsageError(f"{printable(out)} is not empty; choose another --out, or remove it")
    run_demo(PRESETS["demo"](), out)


def run_demo(config: TrainConfig, out: Path) -> None:
    """The demo with the given settings; prints its table and leaves everything in `out`."""
    from byol.export.exporter import export_bundle
    from byol.training.job import run_training
    from byol.training.recipes.settings import Job
    from byol.training.run_folder import RunFolder

    started = time.perf_counter()
    _say("1/4 Writing 1,797 scanned digits (scikit-learn's copy of the UCI set) as PNG folders")
    write_digits(out / "images")
    _say("2/4 Training a ResNet-18 by BYOL; the labels are not used")
    run_training(Job(out / "images" / "train", out / "run", out / "images" / "test"), config)
    _say("3/4 Exporting the trained and, for comparison, the untrained encoder to ONNX, each verified against torch")
    export_bundle(out / "run", out / "bundle")
    export_bundle(RunFolder(out / "run").numbered(0), out / "untrained-bundle")
    _say("4/4 Extracting features with ONNX Runtime and evaluating them")
    rows = evaluate(out)
    with atomic_file(out / "results.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=2) + "\n")
    place = printable(out)
    click.echo(table(rows))
    click.echo(
        f"\nTest accuracy in percent on 500 digits by other writers. 1 and 5 labels per class: mean and deviation of\n"
        f"{DRAWS} random draws of 10 and 50 labelled images; all: {TRAIN_IMAGES:,} labelled images.\n\n"
        f"{place}/bundle          the trained encoder: try `byol info --verify {quoted(out / 'bundle')}`\n"
        f"{place}/neighbours.png  test digits, each beside its nearest training digits\n"
        f"{place}/run/views.png   what the encoder was trained on\n\n"
        f"{time.perf_counter() - started:.0f} seconds."
    )


def _say(text: str) -> None:
    click.echo(text, err=True)


def write_digits(folder: Path) -> None:
    """The 8x8 digits of scikit-learn as PNG files `train|test/<digit>/<number>.png`."""
    digits = sklearn.datasets.load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("train" if number < TRAIN_IMAGES else "test") / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).save(path)


def evaluate(out: Path) -> list[dict[str, Any]]:
    """Few-label and full accuracy of raw pixels, the untrained and the trained encoder; also draws the neighbours."""
    from byol.images.labels import require_labels
    from byol.images.open import open_source
    from byol.serve import Encoder

    sources = [open_source(out / "images" / part) for part in ("train", "test")]
    y_train, y_test = (np.array(require_labels(source)) for source in sources)
    features: dict[str, list[np.ndarray]] = {
        "raw pixels": [
            np.stack([np.asarray(source.open(i).convert("L"), np.float32).ravel() for i in range(len(source))])
            for source in sources
        ]
    }
    for name, bundle in (("untrained encoder", "untrained-bundle"), ("trained encoder", "bundle")):
        encoder = Encoder(out / bundle, device="auto")
        features[name] = [np.concatenate([part for _, part in encoder.stream(source)]) for source in sources]
    draw_neighbours(out / "neighbours.png", sources, *features["trained encoder"])
    return [{"features": name, **scores(x, y_train, z, y_test)} for name, (x, z) in features.items()]


def scores(x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> dict[str, Any]:
    """kNN and linear accuracy in percent, with few labels per class (mean, deviation over draws) and with all."""
    from byol.serve import KNNClassifier, LinearProbe
    from byol.serve.evaluate.few_labels import few_label_accuracy

    result: dict[str, Any] = {}
    for count in FEW_LABELS:
        for name, make in (("knn", partial(KNNClassifier, count)), ("linear", LinearProbe)):
            few = few_label_accuracy(make, (x_train, y_train), (x_test, y_test), count, DRAWS)
            result[f"{name}_{count}"] = round(100 * few.mean, 1)
            result[f"{name}_{count}_std"] = round(100 * few.deviation, 1)
    result["knn_all"] = round(100 * KNNClassifier(k=20).fit(x_train, y_train).score(x_test, y_test), 1)
    result["linear_all"] = round(100 * LinearProbe().fit(x_train, y_train).score(x_test, y_test), 1)
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The results for people."""
    head = ["1 label", "5 labels", "all labels"]
    lines = [f"{'':18}{'kNN:':>9}{'':24}{'linear:':>12}", " " * 18 + "".join(f"{text:>14}" for text in head * 2)]
    for row in rows:
        cells = []
        for name in ("knn", "linear"):
            cells += [f"{row[f'{name}_{count}']:.1f} +- {row[f'{name}_{count}_std']:.1f}" for count in FEW_LABELS]
            cells.append(f"{row[name + '_all']:.1f}")
        lines.append(f"{row['features']:18}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def draw_neighbours(path: Path, sources: list[Any], bank: np.ndarray, queries: np.ndarray) -> None:
    """A grid: in each row a test image (framed), then its nearest training images by cosine similarity."""
    from byol.images.grid import Tile, draw_grid
    from byol.images.labels import require_labels

    unit_bank, unit = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    (train, y_train), (test, y_test) = ((source, require_labels(source)) for source in sources)
    rows = []
    for query in np.linspace(0, len(queries) - 1, GRID_QUERIES, dtype=int).tolist():
        similarity = unit_bank @ unit[query]
        nearest = np.argsort(-similarity)[:GRID_NEIGHBOURS].tolist()
        found = [
            (train.open(i), y_train[i], f"cosine {similarity[i]:.2f}", y_train[i] != y_test[query]) for i in nearest
        ]
        rows.append([Tile(test.open(query), y_test[query]), *(Tile(*tile) for tile in found)])
    draw_grid(path, rows, side=80)
