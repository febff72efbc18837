"""Training speed: ours end to end, a peer's loop, the ceiling of our own step, and each switch taken away.

    pip install -e '.[peers]'
    python benchmarks/train.py DATA --out FILE.json [--image-size 32] [--batch-size 64] [--device cpu] [--rounds 3]

Every row is a process of its own on the same folder of images, encoder and batch size; rounds run all rows in turn, so
that a noisy machine is noisy to all. Prints one table (median images/s over the rounds, ratio to ours) and writes it
with versions and every single figure. Ratios hold within one run; images/s do not carry to another machine.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

ROWS = {  # name: (worker, settings)
    "ours, end to end": ("ours", []),
    "lightly's documented loop": ("lightly", []),
    "byol-pytorch's documented loop": ("byol-pytorch", []),
    "ours, resident synthetic tensors, no augmentation": ("ceiling", []),
    "a bf16 matrix product's rate, at a step's multiplications": ("matrix", []),
    "ours without resident data (files decoded again each time)": ("streamed", []),
    "ours with per-image augmentation in a DataLoader": ("dataloader", []),
    "ours without bf16": ("ours", ["precision=fp32"]),
    "ours without channels_last": ("ours", ["channels_last=false"]),
    "ours with channels last in small maps too": ("ours", ["small_map=0"]),
    "ours, everything compiled": ("ours", ["compile=all"]),
    "ours, nothing compiled": ("ours", ["compile=none"]),
    "ours without foreach": ("loops", []),
    "ours without keeping freed memory": ("ours", ["keep_memory=false"]),
}


def measure(name: str, data: Path, options: dict[str, Any]) -> float:
    """Images/s of one row, in a process of its own."""
    worker, settings = ROWS[name]
    return work(worker, data, options, settings)


def work(worker: str, data: Path, options: dict[str, Any], settings: Sequence[str] = ()) -> float:
    """The figure that a worker of `train_worker.py` prints."""
    words = [sys.executable, str(Path(__file__).with_name("train_worker.py")), worker, str(data)]
    words += [f"{key}={value}" for key, value in options.items()] + [*settings]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise click.ClickException(f"{worker}: the process ended with {done.returncode}")
    return float(json.loads(done.stdout.splitlines()[-1])["figure"])


def command_line(name: str) -> list[str]:
    """How this process was called, without places of this machine: paths by their last parts, no --out."""
    words = sys.argv[1:]
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]

    def shown(word: str) -> str:
        label, equals, place = word.rpartition("=")
        return f"{label}{equals}{'/'.join(Path(place).parts[-2:])}" if Path(place).exists() else word

    return [name, *map(shown, words)]


def machine(device: str) -> dict[str, Any]:
    """What was measured on, and with which versions."""
    import torch

    packages = {}
    for package in ("torch", "torchvision", "onnxruntime-gpu", "lightly", "byol-pytorch", "numpy", "pillow"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "-"
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    return {"device": name, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), **packages}


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--image-size", default=32, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seconds", default=30.0, show_default=True, help="Timed per row and round, after as long a warm-up.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", multiple=True, help="Rows whose name holds this text.")
def main(data: Path, out: Path, device: str, rounds: int, only: tuple[str, ...], **options: Any) -> None:
    chosen = [name for name in ROWS if not only or any(text in name for text in only)]
    figures: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(rounds):
        for name in chosen:
            figures[name].append(measure(name, data, {"device": device, **options}))
            click.echo(f"round {number + 1}: {name}: {figures[name][-1]:.1f} images/s", err=True)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    result = {
        "command": command_line("benchmarks/train.py"),
        "options": {"device": device, "rounds": rounds, **options},
        "machine": machine(device),
        "images_per_second": figures,
        "median": medians,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    ours = medians.get("ours, end to end")
    click.echo("| row | images/s | ours / this |\n|---|---|---|")
    for name, rate in medians.items():
        click.echo(f"| {name} | {rate:.1f} | {f'{ours / rate:.2f}' if ours else '-'} |")


if __name__ == "__main__":
    main()
