"""Training speed: ours end to end, a peer's loop, the ceiling of our own step, and each switch taken away.

    pip install -e '.[peers]'
    python -m benchmarks.speed.train DATA --out FILE.json [--image-size 32] [--batch-size N] [--device cpu] [--rounds N]

Every row is a process of its own on the same folder of images, encoder and batch size; rounds run all rows in turn, so
that a noisy machine is noisy to all. Prints one table (median images/s over the rounds, ratio to ours) and writes
versions and every single figure. Ratios hold within one run; images/s do not carry to another machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.rows import Row, Rows, said

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


def measure(name: str, data: Path, options: dict[str, Any]) -> Row:
    """One row, in a process of its own."""
    worker, settings = ROWS[name]
    return {"images_per_second": work(worker, data, options, settings)}


def work(worker: str, data: Path, options: dict[str, Any], settings: Sequence[str] = ()) -> float:
    """The figure that a worker of `train_worker.py` prints."""
    named = [f"{key}={value}" for key, value in options.items()]
    printed = said("benchmarks.speed.train_worker", worker, data, *named, *settings)
    return float(json.loads(printed.splitlines()[-1])["figure"])


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
    rows = Rows(out, "benchmarks.speed.train", device, options={"device": device, "rounds": rounds, **options})
    for number in range(rounds):
        for name in chosen:
            rows.find(name, partial(measure, name, data, {"device": device, **options}), round=number + 1)
    medians = rows.medians("images_per_second")
    ours = medians.get("ours, end to end")
    click.echo("| row | images/s | ours / this |\n|---|---|---|")
    for name, rate in medians.items():
        click.echo(f"| {name} | {rate:.1f} | {f'{ours / rate:.2f}' if ours else '-'} |")


if __name__ == "__main__":
    main()
