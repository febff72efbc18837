"""Large photographs: what decoding JPEGs at a reduced scale saves, and how far it moves the features.

    python -m benchmarks.speed.large_images PHOTOS --bundle BUNDLE --out FILE.json [--rounds 3] [--seconds 3]

PHOTOS are real photographs as cameras wrote them. Three tables: the cosine between the features of a photograph decoded
whole and at the scale of each margin; images/s of one thread and the process's peak memory, from a file in memory to
the encoder's pixels, at 2, 12 and 48 megapixels, beside libvips (pyvips) and OpenCV where these are installed; and
images/s from 12-megapixel files to features, beside the common way in torch. Every row of speed is a process of its
own, and rounds run all rows in turn.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks.rows import Row, Rows, said
from benchmarks.speed.peak import peak_gb
from benchmarks.speed.serve import torch_row
from byol.bundle.folder import Bundle
from byol.images.decode import Preprocess
from byol.images.open import open_source
from byol.images.picture.read import read_image
from byol.images.source import Opener
from byol.images.surroundings import UnreadableImage

MEGAPIXELS = (2, 12, 48)
MARGINS = (1, 2, 2.25, 2.5, 3)
FORMATS = {"JPEG": {"quality": 90}, "PNG": {}, "WebP": {"quality": 90}, "TIFF": {}}
DECODERS = ("ours", "whole", "pyvips thumbnail", "OpenCV reduced")
OURS = ("ours", "ours, decoded whole", "ours int8", "ours int8, decoded whole")
END_TO_END = (*OURS, "torch, torchvision's transforms, DataLoader")
FILES = 24  # of 12 megapixels each


# ------------------------------------------------------------------------------------------------------- agreement


def agreement(photos: Path, bundle: Path) -> list[dict[str, Any]]:
    """For each margin: the cosines of features to those of whole decoding, over the photographs it makes smaller."""
    from byol.serve import Encoder

    encoder, source = Encoder(bundle, "cpu"), open_source(photos)
    spec = encoder.manifest.preprocess
    found: dict[float, list[float]] = {margin: [] for margin in MARGINS}
    sizes: list[float] = []
    for index in range(len(source)):
        try:
            whole = source.open(index)
        except UnreadableImage:
            continue
        expected = encoder.encode(Preprocess(spec.resize, spec.crop)(whole)[None])[0]
        for margin in MARGINS:
            transform = Preprocess(spec.resize, spec.crop, margin)
            image = source.open(index, transform.least_side)
            if image.size == whole.size:
                continue
            features = encoder.encode(transform(image)[None])[0]
            norms = np.linalg.norm(features) * np.linalg.norm(expected)
            found[margin].append(float(features @ expected / norms))
            if margin == MARGINS[0]:
                sizes.append(whole.width * whole.height / 1e6)
    return [
        {"margin": margin, "photographs": len(cosines), "megapixels": [round(min(sizes), 1), round(max(sizes), 1)]}
        | {"median": float(np.median(cosines)), "lowest": min(cosines)}
        for margin, cosines in found.items()
    ]


# ----------------------------------------------------------------------------------------------------------- speed


def of_size(photo: Image.Image, megapixels: float) -> Image.Image:
    """A photograph, enlarged or reduced to so many pixels."""
    scale = (megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
    return photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str) -> bytes:
    """The content of a file."""
    stream = io.BytesIO()
    image.save(stream, format.upper(), **FORMATS[format])
    return stream.getvalue()


def decoder(name: str, size: int) -> Callable[[bytes], object]:
    """A function from a file's content to the middle of the picture, size x size pixels."""
    transform = Preprocess.for_size(size)
    if name == "ours":
        return lambda content: transform(read_image(io.BytesIO(content), least_side=transform.least_side))
    if name == "whole":
        return lambda content: transform(read_image(io.BytesIO(content)))
    if name == "pyvips thumbnail":
        import pyvips

        return lambda content: pyvips.Image.thumbnail_buffer(content, size, height=size, crop="centre").numpy()
    import cv2

    def reduced(content: bytes) -> object:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)
        return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)

    cv2.setNumThreads(1)
    return reduced


def decoding_worker(name: str, file: Path, seconds: float, size: int) -> None:
    """Measure one decoder on one file in one thread and print its figures as JSON."""
    decode, content = decoder(name, size), file.read_bytes()
    decode(content)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        decode(content)
        count += 1
    rate = count / (time.perf_counter() - started)
    click.echo(json.dumps({"images_per_second": rate, "peak_gb": peak_gb(os.getpid())}))


def _whole(open: Opener, index: int, _: int = 0) -> Image.Image:
    return open(index)


def end_to_end_worker(name: str, photos: Path, work: Path, seconds: float) -> None:
    """Measure one way from files to features and print its figures as JSON."""
    from byol.machine import keep_freed_memory
    from byol.serve import Encoder

    run: Callable[[], int]
    if name.startswith("ours"):
        keep_freed_memory()  # as the `byol` command does
        variant = "int8" if "int8" in name else "fp32"
        encoder, source = Encoder(work / "bundle", "cpu", variant=variant), open_source(photos)
        if name.endswith("whole"):
            source = replace(source, open=partial(_whole, source.open))

        def run() -> int:
            return sum(len(batch.indices) for batch in encoder.batches(source))
    else:
        run = torch_row(photos, work, torch_options(work / "bundle"))
    run()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        count += run()
    rate = count / (time.perf_counter() - started)
    click.echo(json.dumps({"images_per_second": rate, "peak_gb": peak_gb(os.getpid())}))


# ------------------------------------------------------------------------------------------------------------ rows


def files(photos: Path, work: Path) -> tuple[dict[str, Path], Path]:
    """Files of each format and size of the largest photograph, and a folder of 12-megapixel JPEGs of some."""
    paths = sorted(photos.iterdir(), key=lambda path: path.stat().st_size)[-FILES:]
    single, many = {}, work / "12-megapixels" / "photographs"
    many.mkdir(parents=True)
    for megapixels in MEGAPIXELS:
        large = of_size(read_image(paths[-1]), megapixels)
        for format in FORMATS:
            single[f"{megapixels} MP {format}"] = work / f"{megapixels}.{format.lower()}"
            single[f"{megapixels} MP {format}"].write_bytes(encoded(large, format))
    for number, path in enumerate(paths):
        (many / f"{number}.jpg").write_bytes(encoded(of_size(read_image(path), 12), "JPEG"))
    return single, many.parent


def measure(words: list[Any]) -> Row:
    found: Row = json.loads(said("benchmarks.speed.large_images", "--worker", *words).splitlines()[-1])
    return found


def names(single: dict[str, Path], many: Path, work: Path, size: int) -> Iterator[tuple[str, list[Any]]]:
    """Each row's name, and the arguments of its worker."""
    for name, file in single.items():
        for way in DECODERS:
            if name.endswith("JPEG") or way == "ours":
                yield f"{name}: {way}", ["decoding", way, file, size]
    for way in END_TO_END:
        yield f"files to features: {way}", ["features", way, many, work]


def prepare(bundle: Path, work: Path) -> int:
    """A copy of the bundle, and what the torch row needs; the encoder's image size."""
    from safetensors.torch import load_file
    from torch import save

    shutil.copytree(bundle, work / "bundle")
    save(load_file(bundle / "encoder.safetensors"), work / "weights.pth")
    return Bundle.open(bundle).manifest.image_size


def torch_options(bundle: Path) -> dict[str, Any]:
    from byol.pretrained import architecture_of

    manifest = Bundle.open(bundle).manifest
    return {"arch": architecture_of(manifest), "image_size": manifest.image_size, "device": "cpu"}


@click.command()
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--agreement-of", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another bundle.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Of each row and round.")
@click.option("--only", multiple=True, help="Rows of speed whose name holds this text.")
def main(
    photos: Path,
    bundle: Path,
    agreement_of: Path | None,
    out: Path,
    rounds: int,
    seconds: float,
    only: tuple[str, ...],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = Rows(out, "benchmarks.speed.large_images")
        for one in (bundle, *([agreement_of] if agreement_of else [])):
            for row in agreement(photos, one):
                rows.add({"row": f"agreement, {one.name}", **row})
        size = prepare(bundle, work)
        single, many = files(photos, work)
        for number in range(1, rounds + 1):
            for name, words in names(single, many, work, size):
                if any(text in name for text in only) or not only:
                    rows.find(name, partial(measure, [*words, seconds]), round=number)
    peaks = rows.medians("peak_gb")
    click.echo("| row | images/s | peak GB |\n|---|---|---|")
    for name, rate in rows.medians("images_per_second").items():
        click.echo(f"| {name} | {rate:.1f} | {peaks[name]:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        kind, way, source, last, seconds = sys.argv[2:]
        if kind == "decoding":
            decoding_worker(way, Path(source), float(seconds), int(last))
        else:
            end_to_end_worker(way, Path(source), Path(last), float(seconds))
    else:
        main()
