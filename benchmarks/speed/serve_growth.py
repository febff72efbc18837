"""How extraction, kNN and the linear probe grow: seconds and peak memory over images, bank, samples and classes.

    python -m benchmarks.speed.serve_growth BUNDLE IMAGES --out FILE.json [--only TEXT] [--device cpu]

Every row is one `byol` command as a process of its own. Images are links to the files of IMAGES, again and again, into
a folder of parts; banks and samples are random features with class structure, as features files on disk. The last bank
has ImageNet's size: 10.5 GB in memory, 5.2 GB on disk.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.robustness.faults import linked
from benchmarks.rows import Row, Rows
from benchmarks.speed.peak import measured
from byol.serve.features.write import feature_file

IMAGES = (1_000, 10_000, 100_000)
BANKS = ((12_800, 512), (128_000, 512), (1_280_000, 512), (1_281_167, 2048))  # rows, features
SAMPLES = ((5_000, 10), (50_000, 10), (500_000, 10), (50_000, 100), (50_000, 1000))  # rows, classes
QUERIES, DIM = 2_000, 512
BLOCK = 16_384


def byol(*words: object) -> Row:
    """Seconds and peak memory of a `byol` command, and what it printed as JSON."""
    seconds, peak, said = measured([sys.executable, "-m", "byol", *words, "--json"], Path.cwd())
    found = json.loads(said)
    found.pop("out", None)  # a place of this machine
    return {"seconds": round(seconds, 2), "peak_gb": round(peak, 2), "said": found}


def write_features(path: Path, rows: int, dim: int, classes: int, seed: int = 0) -> Path:
    """Overlapping clusters as a features file of half precision."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(classes).normal(size=(classes, dim)).astype(np.float32)
    with feature_file(path, dim, "0" * 64, "float16") as write:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            labels = np.arange(start, start + count) % classes
            x = centres[labels] + 6 * random.standard_normal((count, dim), np.float32)
            write([str(start + i) for i in range(count)], [f"{label:04d}" for label in labels], x)
    return path


def extraction(work: Path, bundle: Path, images: Path, device: str, count: int) -> Row:
    linked(images, count, work / f"images-{count}", broken_every=0)
    return byol("extract", bundle, work / f"images-{count}", "--out", f"{work}/out-{count}/", "--device", device)


def knn(work: Path, device: str, count: int, dim: int) -> Row:
    bank = write_features(work / "bank.parquet", count, dim, classes=100)
    queries = write_features(work / "queries.parquet", QUERIES, dim, classes=100, seed=1)
    try:
        options = ("--k", 200, "--temperature", 0.1, "--device", device)
        return byol("knn", "--train", bank, "--test", queries, *options)
    finally:
        bank.unlink()


def linear(work: Path, device: str, count: int, classes: int) -> Row:
    train = write_features(work / "train.parquet", count, DIM, classes)
    test = write_features(work / "test.parquet", QUERIES, DIM, classes, seed=1)
    return byol("linear", "--train", train, "--test", test, "--device", device)


def jobs(work: Path, bundle: Path, images: Path, device: str) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every row's name, and what finds it."""
    for count in IMAGES:
        yield f"extract {count:,} images", partial(extraction, work, bundle, images, device, count)
    for count, dim in BANKS:
        yield f"knn, bank {count:,} x {dim}, {QUERIES:,} queries, k 200", partial(knn, work, device, count, dim)
    for count, classes in SAMPLES:
        yield f"linear, {count:,} x {DIM}, {classes} classes, l2 chosen", partial(linear, work, device, count, classes)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("images", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--only", default="", help="Rows whose name holds this text.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def main(bundle: Path, images: Path, out: Path, only: str, device: str) -> None:
    rows = Rows(out, "benchmarks.speed.serve_growth", device)
    with tempfile.TemporaryDirectory() as folder:
        for name, job in jobs(Path(folder), bundle.resolve(), images, device):
            if only in name:
                rows.find(name, job)
    for row in rows.rows:
        click.echo(f"{row['row']}: {row.get('seconds', '-')} s, {row.get('peak_gb', '-')} GB")


if __name__ == "__main__":
    main()
