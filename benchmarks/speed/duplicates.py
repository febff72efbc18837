"""Near-duplicates: seconds and memory of `byol duplicates`, and which copies of photographs it finds at what threshold.

    python -m benchmarks.speed.duplicates growth --out FILE.json [--rows N]...
    python -m benchmarks.speed.duplicates planted BUNDLE PHOTOS --out FILE.json

growth: random features of half precision on disk, a twentieth of them near-copies; each row is one `byol` command as a
process of its own, and a tenth of the smallest set is compared with all cosines in float64. planted: copies of every
tenth photograph, each kind encoded by BUNDLE; pairs of different photographs above a threshold count as false (a few
may be of one scene), and those that are expected among 100,000 images grow with the number of pairs.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.rows import Row, Rows
from benchmarks.speed.peak import measured
from byol.images.open import open_source
from byol.serve import Encoder
from byol.serve.evaluate.knn import unit_rows
from byol.serve.extract.engine import collect
from byol.serve.features.write import feature_file

DIM, COPIES, NOISE = 512, 20, 0.05
THRESHOLDS = (0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999)
BLOCK = 16_384
Picture = Image.Image


def write_rows(path: Path, count: int) -> np.ndarray:
    """Features like those behind a ReLU, the last twentieth near-copies of the first, as float16; returns them."""
    random = np.random.default_rng(0)
    x = np.maximum(random.standard_normal((count, DIM), np.float32), 0)
    copies = count // COPIES
    x[-copies:] = x[:copies] * (1 + NOISE * random.standard_normal((copies, DIM), np.float32))
    with feature_file(path, DIM, "0" * 64, "float16") as write:
        for start in range(0, count, BLOCK):
            part = x[start : start + BLOCK]
            write([str(start + i) for i in range(len(part))], [None] * len(part), part)
    return x.astype(np.float16).astype(np.float32)


def is_exact(x: np.ndarray, pairs: Path, threshold: float) -> bool:
    """Whether the pairs among every tenth row and its copies are those of all cosines in float64."""
    rows = np.flatnonzero(np.arange(len(x)) % (len(x) // COPIES) % 10 == 0)
    exact = x[rows].astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    a, b = np.nonzero(np.triu(np.round(exact @ exact.T, 9) >= threshold, 1))
    wanted = set(zip(rows[a].tolist(), rows[b].tolist(), strict=True))
    table, inside = pq.read_table(pairs).to_pydict(), set(rows.tolist())
    found = {(int(a), int(b)) for a, b in zip(table["id_a"], table["id_b"], strict=True)}
    return bool(wanted) and {pair for pair in found if inside.issuperset(pair)} == wanted


@click.group()
def main() -> None:
    """What it costs, and what it finds."""


@main.command()
@click.option("--rows", "counts", multiple=True, type=int, default=(25_000, 50_000, 100_000), show_default=True)
@click.option("--threshold", default=0.99, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def growth(counts: tuple[int, ...], threshold: float, out: Path) -> None:
    rows = Rows(out, "benchmarks.speed.duplicates")
    with tempfile.TemporaryDirectory() as folder:
        features, pairs = Path(folder) / "features.parquet", Path(folder) / "pairs.parquet"
        for count in counts:
            rows.find("growth", partial(measure, features, pairs, count, threshold, count == min(counts)), images=count)


def measure(features: Path, pairs: Path, count: int, threshold: float, compared: bool) -> Row:
    x = write_rows(features, count)
    call = ("duplicates", features, "--out", pairs, "--threshold", threshold, "--json")
    seconds, peak, said = measured([sys.executable, "-m", "byol", *call], Path.cwd())
    found = {key: value for key, value in json.loads(said).items() if key != "out"}
    row = {
        "seconds": round(seconds, 1),
        "peak_gb": round(peak, 2),
        "features_gb": round(x.nbytes / 1e9, 2),
        "said": found,
    }
    return row | ({"exact": is_exact(x, pairs, threshold)} if compared else {})


def jpeg(image: Picture, quality: int) -> Picture:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def scaled(image: Picture, factor: float) -> Picture:
    return image.resize((round(factor * image.width), round(factor * image.height)), Image.Resampling.BICUBIC)


def cropped(image: Picture, left: float, right: float) -> Picture:
    """Without a share of the width at the left and right, and of the height at the top and bottom."""
    box = (left * image.width, left * image.height, (1 - right) * image.width, (1 - right) * image.height)
    return image.crop(tuple(map(round, box)))  # type: ignore[arg-type]


KINDS: dict[str, Callable[[Picture], Picture]] = {
    "JPEG, quality 90": lambda image: jpeg(image, 90),
    "JPEG, quality 70": lambda image: jpeg(image, 70),
    "JPEG, quality 50": lambda image: jpeg(image, 50),
    "half the size": lambda image: scaled(image, 0.5),
    "twice the size": lambda image: scaled(image, 2),
    "brightness +10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "brightness -10 %": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "cropped to 95 %, centre": lambda image: cropped(image, 0.025, 0.025),
    "cropped to 95 %, corner": lambda image: cropped(image, 0, 0.05),
    "mirrored": ImageOps.mirror,
}


@main.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("photos", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def planted(bundle: Path, photos: Path, out: Path) -> None:
    encoder, source = Encoder(bundle, device="cpu"), open_source(photos)
    features, *_ = collect(encoder, source, lambda _: None)
    unit = unit_rows(features.x)
    count = len(unit)
    cosines = (unit @ unit.T)[np.triu_indices(count, 1)]
    false = {str(t): int((cosines >= t).sum()) for t in THRESHOLDS}
    pictures = [source.open(i) for i in range(0, count, 10)]
    originals = np.arange(0, count, 10)
    others = np.ones((len(originals), count), bool)
    others[np.arange(len(originals)), originals] = False
    rows = Rows(out, "benchmarks.speed.duplicates")
    grown = {t: round(number * (100_000 / count) ** 2) for t, number in false.items()}
    facts = {"photos": count, "pairs": len(cosines), "of_different_photographs": false, "as_many_of_100000": grown}
    rows.add({"row": "pairs", **facts})
    for kind, copy in KINDS.items():
        alike = unit_rows(encoder([copy(picture) for picture in pictures])) @ unit.T
        own = alike[np.arange(len(originals)), originals]
        recall = {str(t): round(float((own >= t).mean()), 4) for t in THRESHOLDS}
        wrong = {str(t): int(((alike >= t) & others).sum()) for t in THRESHOLDS}
        median = round(float(np.median(own)), 5)
        rows.add({"row": kind, "copies": len(own), "median_cosine": median, "recall": recall, "wrong_pairs": wrong})


if __name__ == "__main__":
    main()
