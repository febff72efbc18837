"""Serving speed: features from JPEG files beside the common way, kNN and linear probe beside other libraries.

    pip install -e '.[peers]'  # and, for its row, lightly-train
    python -m benchmarks.speed.serve PHOTOS --out FILE.json [--arch NAME] [--image-size 224] [--device cpu] [--rounds 3]

Every row is a process of its own, rounds run all rows in turn. `images` rows: images/s over the photographs, again and
again for `--seconds`; the encoder has random weights. `knn` rows: seconds on random features with class structure.
`linear` rows need real features, which decide how long a fit takes: `--features FOLDER` with the train.parquet and
test.parquet of `byol extract`; 10 classes are CIFAR-10's, 100 those of a noisy linear teacher. What was found
(neighbours, accuracy) is compared in the table. Prints one table and writes it with versions and every figure.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.rows import Row, Rows, said
from benchmarks.speed.inference import read_images, write_bundle, write_checkpoint
from benchmarks.speed.peak import peak_gb

LIGHTLY = "lightly-train's embed"
IMAGES = (
    "ours fp32",
    "ours int8",
    "torch eager, torchvision, DataLoader",
    LIGHTLY,
    "decoding alone",
    "session alone, fp32",
)
KNN = ("ours", "faiss flat", "scikit-learn")
LINEAR = ("ours", "scikit-learn")
BANK, QUERIES, DIM, K = 50_000, 10_000, 512, 200


def features(
    classes: int = 10, bank: int = BANK, queries: int = QUERIES
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Overlapping clusters: bank and queries float32 (N, 512), with their classes."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, DIM))
    labels = random.integers(0, classes, bank + queries)
    x = (centres[labels] + random.normal(scale=6, size=(bank + queries, DIM))).astype(np.float32)
    return x[:bank], labels[:bank], x[bank:], labels[bank:]


def image_row(row: str, photos: Path, work: Path, options: dict[str, Any]) -> Callable[[], int]:
    """A function that goes once over the photographs and returns how many there were."""
    from byol.images.decode import decode
    from byol.images.open import open_source
    from byol.serve import Encoder

    source = open_source(photos)
    if row.startswith("torch"):
        return torch_row(photos, work, options)
    if row == LIGHTLY:
        return lightly_row(photos, work, options)
    encoder = Encoder(work / "bundle", options["device"], variant="int8" if "int8" in row else "fp32")
    transform = encoder.manifest.preprocess.transform()
    if row.startswith("decoding"):
        return lambda: sum(1 for _ in decode(source, transform, least_side=transform.least_side))
    if row.startswith("session"):
        batch = np.stack([transform(source.open(i)) for i in range(encoder.batch_size)])

        def session() -> int:
            for _ in range(4):
                encoder.encode(batch)
            return 4 * len(batch)

        return session
    return lambda: sum(len(batch.indices) for batch in encoder.batches(source))


def torch_row(photos: Path, work: Path, options: dict[str, Any]) -> Callable[[], int]:
    """What a torch user writes: ImageFolder, torchvision's transforms, a DataLoader of two workers, eager fp32."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from byol.encoders.build import build_encoder

    size, device = options["image_size"], torch.device(options["device"])
    encoder = build_encoder(options["arch"], "imagenet", size)
    encoder.load_state_dict(torch.load(work / "weights.pth", weights_only=True))
    encoder = encoder.eval().to(device)
    steps = [transforms.Resize(round(size * 8 / 7)), transforms.CenterCrop(size), transforms.ToTensor()]
    steps.append(transforms.Normalize((0.5,) * 3, (0.5,) * 3))
    data = ImageFolder(str(photos), transforms.Compose(steps))
    loader = DataLoader(data, batch_size=32, num_workers=2, persistent_workers=True)

    @torch.no_grad()
    def run() -> int:
        return sum(len(encoder(images.to(device)).cpu()) for images, _ in loader)

    return run


def lightly_row(photos: Path, work: Path, options: dict[str, Any]) -> Callable[[], int]:
    """Its documented call, on a checkpoint that it wrote itself after a step; every pass is a whole call."""
    import lightly_train

    from byol.images.open import open_source

    checkpoint = work / "lightly" / "checkpoints" / "last.ckpt"
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[options["device"]]
    count, shared = len(open_source(photos)), {"data": photos, "num_workers": 2, "accelerator": accelerator}
    if not checkpoint.exists():
        small = {"transform_args": {"image_size": (64, 64)}, "trainer_args": {"max_steps": 1}, "epochs": 1}
        model = f"torchvision/{options['arch']}"
        lightly_train.train(out=work / "lightly", model=model, method="simclr", batch_size=32, **small, **shared)

    def run() -> int:
        how = {"image_size": options["image_size"], "batch_size": 32, "overwrite": True}
        lightly_train.embed(out=work / "embeddings.pt", checkpoint=checkpoint, **how, **shared)
        return count

    return run


def knn_row(row: str, options: dict[str, Any]) -> dict[str, float]:
    """Seconds for the neighbours of all queries, and a checksum of which they are."""
    bank, labels, queries, _ = features()
    started = time.perf_counter()
    if row == "ours":
        from byol.serve import KNNClassifier

        rows = KNNClassifier(K, device=options["device"]).fit(bank, labels).kneighbors(queries)[1]
    elif row == "faiss flat":
        import faiss

        faiss.normalize_L2(bank)
        faiss.normalize_L2(queries)
        index = faiss.IndexFlatIP(DIM)
        index.add(bank)
        rows = index.search(queries, K)[1]
    else:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(bank)
        rows = search.kneighbors(queries, return_distance=False)
    seconds = time.perf_counter() - started
    return {"figure": seconds, "neighbours": float(np.sort(rows[:100]).sum())}


def real_features(folder: Path, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Real train and test features: with their own labels, or where others are asked for, those of a noisy teacher."""
    from byol.serve.features.read import read_features

    train, test = (read_features(folder / f"{part}.parquet") for part in ("train", "test"))
    if len(set(train.labels)) == classes:
        return train.x, np.array(train.labels), test.x, np.array(test.labels)
    random = np.random.default_rng(0)
    teacher = random.normal(size=(train.x.shape[1], classes)) / train.x.std(0)[:, None]  # (D, C)
    scores = [x @ teacher for x in (train.x, test.x)]
    y, truth = ((s + random.normal(scale=s.std(), size=s.shape)).argmax(1) for s in scores)
    return train.x, y, test.x, truth


def linear_row(row: str, classes: int, options: dict[str, Any]) -> dict[str, float]:
    """Seconds of one fit at the same penalty, and the test accuracy."""
    x, y, z, truth = real_features(Path(options["features"]), classes)
    started = time.perf_counter()
    if row == "ours":
        from byol.serve import LinearProbe

        probe: Any = LinearProbe(1e-3, options["device"]).fit(x, y)
    else:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        fit = LogisticRegression(C=1 / (1e-3 * len(x)), max_iter=1000)
        probe = make_pipeline(StandardScaler(), fit).fit(x, y)
    seconds = time.perf_counter() - started
    return {"figure": seconds, "top1": float(probe.score(z, truth))}


def worker(row: str, photos: Path, work: Path, options: dict[str, Any]) -> None:
    """Measure one row and print its figures as JSON."""
    kind, _, name = row.partition(": ")
    if kind == "images":
        run = image_row(name, photos, work, options)
        run()
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < options["seconds"]:
            count += run()
        result = {"figure": count / (time.perf_counter() - started)}
    elif kind == "knn":
        result = knn_row(name, options)
    else:
        result = linear_row(name, int(kind.split()[1]), options)
    result["peak_gb"] = peak_gb(os.getpid())
    click.echo(json.dumps(result))


def measure(row: str, photos: Path, work: Path, options: dict[str, Any]) -> Row:
    printed = said("benchmarks.speed.serve", "--worker", row, photos, work, json.dumps(options))
    found: Row = json.loads(printed.splitlines()[-1])
    return found


def names() -> Iterator[str]:
    """Every row's name: what is done, and who does it."""
    yield from (f"images: {name}" for name in IMAGES)
    yield from (f"knn: {name}" for name in KNN)
    yield from (f"linear {classes} classes: {name}" for classes in (10, 100) for name in LINEAR)


@click.command()
@click.argument("photos", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=224, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Of each row of images.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--features", type=click.Path(exists=True, file_okay=False), help="For the linear rows.")
@click.option("--only", multiple=True, help="Rows whose name holds this text.")
def main(photos: Path, out: Path, rounds: int, only: tuple[str, ...], **options: Any) -> None:
    chosen = [row for row in names() if not only or any(text in row for text in only)]
    chosen = [row for row in chosen if options["features"] or not row.startswith("linear")]
    shown = {name: value for name, value in options.items() if name != "features"}
    rows = Rows(out, "benchmarks.speed.serve", options["device"], options=shown)
    with tempfile.TemporaryDirectory() as folder:
        work, arch, size = Path(folder), options["arch"], options["image_size"]
        write_checkpoint(work / "weights.pth", arch, size, read_images(photos, size, 64))
        rows.find("export", partial(write_bundle, work, arch, size, "--precision", "int8", "--calibrate", photos))
        for number in range(rounds):
            for row in chosen:
                rows.find(row, partial(measure, row, photos, work, options), round=number + 1)
    peaks = rows.medians("peak_gb")
    click.echo("| row | images/s or seconds | peak GB | found |\n|---|---|---|---|")
    for name, figure in rows.medians("figure").items():
        first = next(row for row in rows.rows if row["row"] == name and "figure" in row)
        rest = {key: value for key, value in first.items() if key not in ("row", "round", "figure", "peak_gb")}
        click.echo(f"| {name} | {figure:.2f} | {peaks[name]:.2f} | {rest or ''} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        from byol.machine import keep_freed_memory

        if ": ours" in sys.argv[2] or "alone" in sys.argv[2]:  # as the `byol` command does
            keep_freed_memory()
        worker(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5]))
    else:
        main()
