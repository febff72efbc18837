"""Inference speed of an exported encoder beside torch, and what an export costs.

    python -m benchmarks.inference PHOTOS --out FILE.json [--arch resnet18] [--image-size 224] [--device cpu]

"torch eager" is the model as its constructor gives it, in fp32; the other rows name what is changed. The encoder has
random weights and the batch-norm statistics of the photographs; the photographs also calibrate int8. Every row is a
process of its own on the same batch of preprocessed images; rounds run all rows in turn. Where other work runs beside,
`taskset -c 0 python -m benchmarks.inference ... --processor-time` still tells ratios, those of one core.

Prints the export's figures and a table (median images/s over the rounds, ratio to torch eager), and writes both with
versions and every figure.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.evaluate import byol
from benchmarks.train import command_line, machine

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


def torch_row(row: str, work: Path, options: dict[str, Any], images: np.ndarray) -> Callable[[], object]:
    import torch

    from byol.encoders.build import build_encoder

    device = torch.device(options["device"])
    encoder = build_encoder(options["arch"], "imagenet", options["image_size"])
    encoder.load_state_dict(torch.load(work / "weights.pth", weights_only=True))
    layout = torch.channels_last if "channels_last" in row else torch.contiguous_format
    encoder = encoder.eval().to(memory_format=layout).to(device)
    forward = torch.compile(encoder) if "compile" in row else encoder
    autocast = torch.autocast(device.type, torch.bfloat16, enabled="bf16" in row)
    pixels = torch.from_numpy(images)

    @torch.no_grad()
    def run() -> object:
        with autocast:
            batch = pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            return forward(batch.contiguous(memory_format=layout)).float().cpu()

    return run


def our_row(row: str, work: Path, options: dict[str, Any], images: np.ndarray) -> Callable[[], object]:
    from byol.serve import Encoder

    encoder = Encoder(work / "bundle", options["device"], len(images), variant=row.split()[-1])
    return lambda: encoder.encode(images)


def worker(row: str, work: Path, options: dict[str, Any]) -> None:
    """Time one row and print images/s."""
    images = np.load(work / "batch.npy")
    run = (torch_row if row in TORCH else our_row)(row, work, options, images)

    clock = time.process_time if options["processor_time"] else time.perf_counter

    def repeat(seconds: float) -> float:
        started, count = clock(), 0
        while clock() - started < seconds or count < 3:
            run()
            count += 1
        return count * len(images) / (clock() - started)

    repeat(options["seconds"] / 2)
    click.echo(repeat(options["seconds"]))


def measure(row: str, work: Path, options: dict[str, Any]) -> float:
    words = [sys.executable, "-m", "benchmarks.inference", "--worker", row, str(work), json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


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
    figures: dict[str, list[float]] = {row: [] for row in (*TORCH, *OURS)}
    with tempfile.TemporaryDirectory() as folder:
        work, size = Path(folder), options["image_size"]
        images = read_images(photos, size, 64)
        np.save(work / "batch.npy", np.resize(images, (options["batch_size"], *images.shape[1:])))
        write_checkpoint(work / "weights.pth", options["arch"], size, images)
        toolkit = "timm" if options["arch"].startswith("timm:") else "torchvision"
        words = ["export", work / "weights.pth", "--from", toolkit, "--arch", options["arch"]]
        words += ["--image-size", size, "--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5, "--out", work / "bundle"]
        started = time.perf_counter()
        byol(*words)
        export_seconds = time.perf_counter() - started
        byol(*words, "--precision", "fp16", "--precision", "int8", "--calibrate", photos)
        manifest = json.loads((work / "bundle" / "manifest.json").read_text())
        for number in range(rounds):
            for row in figures:
                figures[row].append(measure(row, work, options))
                click.echo(f"round {number + 1}: {row}: {figures[row][-1]:.1f} images/s", err=True)
    medians = {row: statistics.median(values) for row, values in figures.items()}
    result = {
        "command": command_line("python -m benchmarks.inference"),
        "options": options,
        "machine": machine(options["device"]),
        "export_seconds": export_seconds,
        "files": manifest["files"],
        "images_per_second": figures,
        "median": medians,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    click.echo(f"export: {export_seconds:.1f} s")
    for name, entry in manifest["files"].items():
        parity = entry.get("parity")
        proof = (
            f", relative error {parity['max_relative_error']:.1e}, cosine {parity['min_cosine']:.7f}" if parity else ""
        )
        click.echo(f"{name}: {entry['size'] / 1e6:.1f} MB{proof}")
    click.echo("| row | images/s | / torch eager |\n|---|---|---|")
    for row, rate in medians.items():
        click.echo(f"| {row} | {rate:.1f} | {rate / medians['torch eager']:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main()
