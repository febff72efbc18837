"""Inference speed of an exported encoder beside torch, and what an export costs.

    python -m benchmarks.speed.inference PHOTOS --out FILE.json [--arch resnet18] [--image-size 224] [--device cpu]

"torch eager" is the model as its constructor gives it, in fp32; the other rows name what is changed. The encoder has
random weights and the batch-norm statistics of the photographs; the photographs also calibrate int8. Every row is a
process of its own on the same batch of preprocessed images; rounds run all rows in turn. Where other work runs beside,
`taskset -c 0 python -m benchmarks.speed.inference ... --processor-time` still tells ratios, those of one core.

Prints the export's figures and a table (median images/s over the rounds, ratio to torch eager), and writes both with
versions and every figure.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.rows import Row, Rows, byol, said

TORCH = (
    "torch eager",
    "torch channels_last",
    "torch channels_last, compile",
    "torch channels_last, bf16",
    "torch channels_last, bf16, compile",
)
OURS = ("onnxruntime fp32", "onnxruntime fp16", "onnxruntime int8")


def write_checkpoint(path: Path, arch: str, size: int, images: np.ndarray) -> None:
    """A torchvision state dict with norms that have seen the images."""
    import torch

    from byol.encoders.build import build_encoder

    torch.manual_seed(0)
    encoder = build_encoder(arch, "imagenet", size).train()
    with torch.no_grad():
        for part in np.array_split(images, max(1, len(images) // 32)):
            encoder(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1)
    torch.save(encoder.state_dict(), path)


def read_images(photos: Path, size: int, count: int) -> np.ndarray:
    from byol.images.decode import Preprocess
    from byol.images.open import open_source

    source, preprocess = open_source(photos), Preprocess.for_size(size)
    places = np.linspace(0, len(source) - 1, count, dtype=int)
    return np.stack([preprocess(source.open(int(place))) for place in places])


def torch_run(
    arch: str,
    device: str,
    images: np.ndarray,
    weights: Path | None = None,
    channels_last: bool = False,
    dtype: str = "fp32",
    compiled: bool = False,
    resident: bool = False,
) -> Callable[[], object]:
    """A function that encodes a batch of images uint8 (B, S, S, 3) by torch, from host to host.

    `dtype` is fp32, bf16 or fp16 (by autocast); with `resident` the images lie on the device already.
    """
    import torch

    from byol.encoders.build import build_encoder

    encoder = build_encoder(arch, "imagenet", images.shape[1])
    if weights:
        encoder.load_state_dict(torch.load(weights, weights_only=True))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    encoder = encoder.eval().to(memory_format=layout).to(device)
    forward = torch.compile(encoder, dynamic=False) if compiled else encoder
    number = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype, torch.bfloat16)
    pixels = torch.from_numpy(images).to(device if resident else "cpu")

    @torch.no_grad()
    def run() -> object:
        with torch.autocast(device, number, enabled=dtype != "fp32"):
            batch = pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            return forward(batch.contiguous(memory_format=layout)).float().cpu()

    return run


def torch_row(row: str, work: Path, options: dict[str, Any], images: np.ndarray) -> Callable[[], object]:
    named = {"channels_last": "channels_last" in row, "compiled": "compile" in row}
    dtype = "bf16" if "bf16" in row else "fp32"
    return torch_run(options["arch"], options["device"], images, work / "weights.pth", dtype=dtype, **named)


def our_row(row: str, work: Path, options: dict[str, Any], images: np.ndarray) -> Callable[[], object]:
    from byol.serve import Encoder

    encoder = Encoder(work / "bundle", options["device"], len(images), variant=row.split()[-1])
    return lambda: encoder.encode(images)


def images_per_second(
    run: Callable[[], object], images: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The rate of a call that takes so many images, over `seconds` after half as long a warm-up."""

    def repeat(seconds: float) -> float:
        started, count = clock(), 0
        while clock() - started < seconds or count < 3:
            run()
            count += 1
        return count * images / (clock() - started)

    repeat(seconds / 2)
    return repeat(seconds)


def worker(row: str, work: Path, options: dict[str, Any]) -> None:
    """Time one row and print images/s."""
    images = np.load(work / "batch.npy")
    run = (torch_row if row in TORCH else our_row)(row, work, options, images)
    clock = time.process_time if options["processor_time"] else time.perf_counter
    click.echo(images_per_second(run, len(images), options["seconds"], clock))


def measure(row: str, work: Path, options: dict[str, Any]) -> Row:
    printed = said("benchmarks.speed.inference", "--worker", row, work, json.dumps(options))
    return {"images_per_second": float(printed.splitlines()[-1])}


def write_bundle(work: Path, arch: str, size: int, *more: object) -> Row:
    """work/bundle of work/weights.pth, and how long that took; `more` goes to `byol export`."""
    toolkit = "timm" if arch.startswith("timm:") else "torchvision"
    words = ["export", work / "weights.pth", "--from", toolkit, "--arch", arch, "--image-size", size]
    words += ["--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5, "--out", work / "bundle", *more]
    started = time.perf_counter()
    byol(*words)
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "files": json.loads((work / "bundle" / "manifest.json").read_text())["files"]}


@click.command()
@click.argument("photos", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=224, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Timed per row and round.")
@click.option("--processor-time", is_flag=True, help="Count seconds of the processor; on one core, beside other work.")
@click.option("--rounds", default=3, show_default=True)
def main(photos: Path, out: Path, rounds: int, **options: Any) -> None:
    rows = Rows(out, "benchmarks.speed.inference", options["device"], options=options)
    with tempfile.TemporaryDirectory() as folder:
        work, arch, size = Path(folder), options["arch"], options["image_size"]
        images = read_images(photos, size, 64)
        np.save(work / "batch.npy", np.resize(images, (options["batch_size"], *images.shape[1:])))
        write_checkpoint(work / "weights.pth", arch, size, images)
        export = partial(write_bundle, work, arch, size)
        more = ("--precision", "fp16", "--precision", "int8", "--calibrate", photos)
        exports = [rows.find("export", export), rows.find("export with fp16 and int8", partial(export, *more))]
        for number in range(rounds):
            for row in (*TORCH, *OURS):
                rows.find(row, partial(measure, row, work, options), round=number + 1)
    for exported in exports:
        click.echo(f"{exported['row']}: {exported.get('seconds', '-')} s")
    for name, entry in exports[-1].get("files", {}).items():
        parity = entry.get("parity")
        proof = (
            f", relative error {parity['max_relative_error']:.1e}, cosine {parity['min_cosine']:.7f}" if parity else ""
        )
        click.echo(f"{name}: {entry['size'] / 1e6:.1f} MB{proof}")
    medians = rows.medians("images_per_second")
    eager = medians.get(TORCH[0])
    click.echo("| row | images/s | / torch eager |\n|---|---|---|")
    for row, rate in medians.items():
        click.echo(f"| {row} | {rate:.1f} | {f'{rate / eager:.2f}' if eager else '-'} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main()
