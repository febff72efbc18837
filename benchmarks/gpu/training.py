"""Training speed on a GPU: our step with its switches, its ceilings, and where its time goes; all in one process.

    python -m benchmarks.gpu.training --out FILE.json [--dry] [--only TEXT ...] [--profile]

CIFAR-10's shape (synthetic pixels, ResNet-18, batch 512) unless a row says otherwise. `share_of_matrix`: what a step
multiplies, at the rate of one large bf16 matrix product. `--profile` traces some steps of the chosen rows instead.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.scale import DRY, FULL, Scale
from benchmarks.rows import Row, Rows
from benchmarks.speed.train_worker import flops_per_image, matrix_rate, timed, wait, without_input
from byol.training.data.intake import ImageTensor
from byol.training.recipes.presets import PRESETS
from byol.training.trainer import Trainer

LARGE = {"preset": "small-128", "arch": "resnet50", "image_size": 224, "canvas_size": 256, "batch_size": 128}
# `views`: whether each step makes views of its own; `benchmark`, `tf32`: see `switched`; the rest: preset and settings.
ROWS: dict[str, dict[str, Any]] = {
    "compile none, 512": {"compile": "none"},
    "compile all, 512": {"compile": "all"},
    "compile all, 512, cudnn.benchmark": {"compile": "all", "benchmark": True},
    "compile none, 512, cudnn.benchmark": {"compile": "none", "benchmark": True},
    "compile augmentation, 512, cudnn.benchmark": {"compile": "augmentation", "benchmark": True},
    "ceiling: the same views each step, compile all, 512": {"compile": "all", "views": False},
    "ceiling: the same views each step, compile none, 512": {"compile": "none", "views": False},
    "compile none, 256": {"compile": "none", "batch_size": 256},
    "compile all, 256": {"compile": "all", "batch_size": 256},
    "compile none, fp32 with TF32, 512": {"compile": "none", "precision": "fp32", "tf32": True},
    "compile none, fp32 without TF32, 512": {"compile": "none", "precision": "fp32", "tf32": False},
    "compile none, not channels_last, 512": {"compile": "none", "channels_last": False},
    "compile none, 1024": {"compile": "none", "batch_size": 1024},
    "LARS (preset cifar10), compile none, 256": {"preset": "cifar10", "compile": "none", "batch_size": 256},
    "ResNet-50 224 px, batch 128, compile none": {**LARGE, "compile": "none"},
}


def trainer(scale: Scale, preset: str = "cifar10-fast", views: bool = True, **settings: Any) -> Trainer:
    """Ours on synthetic images; with `views` off, with the views of its first batch in every step."""
    asked = {"canvas_size": 32, "batch_size": 512, "precision": "bf16", **settings, **scale.settings}
    config = PRESETS[preset]().replace(start_size=0, epochs=1000, device=scale.device, **asked)
    side = config.canvas_size
    count = max(config.batch_size, scale.images * 32**2 // side**2)  # as many pixels, whatever their size
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    images = ImageTensor(torch.from_numpy(pixels), torch.ones(len(pixels)), np.arange(len(pixels)), [])
    made = Trainer(config, images)
    return made if views else without_input(made)


@contextmanager
def switched(benchmark: bool = False, tf32: bool | None = None) -> Iterator[None]:
    """cuDNN's search for the fastest convolution, and TF32; torch's defaults afterwards."""
    torch.backends.cudnn.benchmark = benchmark
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True
        torch.set_float32_matmul_precision("highest")


def forget(device: str) -> None:
    """What an earlier row left on the device and in the compiler."""
    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def row(scale: Scale, limits: Row, benchmark: bool = False, tf32: bool | None = None, **settings: Any) -> Row:
    """A row of `ROWS`; `limits` are the card's."""
    forget(scale.device)
    with switched(benchmark, tf32), trainer(scale, **settings) as made:
        return with_share(measured(made, scale), limits, settings)


def measured(made: Trainer, scale: Scale) -> Row:
    """After a warm-up: images/s, the host's time to hand over a step, peak memory."""
    started = time.perf_counter()
    for step in range(scale.warm_up):
        made.step(step)
    wait(made.device)
    warm_up, host = time.perf_counter() - started, 0.0
    started = time.perf_counter()
    for step in range(scale.warm_up, scale.warm_up + scale.steps):
        before = time.perf_counter()
        losses, _ = made.step(step)
        host += time.perf_counter() - before
    wait(made.device)
    spent = (time.perf_counter() - started) / scale.steps
    facts: Row = {
        "images_per_second": round(made.config.batch_size / spent, 1),
        "ms_per_step": round(1e3 * spent, 2),
        "host_ms": round(1e3 * host / scale.steps, 2),
        "warm_up_seconds": round(warm_up, 1),
        "loss": round(losses.tolist()[0], 4),
    }
    if made.device.type == "cuda":
        facts["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return facts


def card(scale: Scale) -> Row:
    """What the card gives, a bf16 matrix product and a copy; and what our step at batch 512 asks of the first."""
    device, seconds = torch.device(scale.device), 0.5 if not scale.is_dry else 0.01
    source = torch.zeros(scale.memory, device=device)
    target = torch.empty_like(source)
    copied = timed(lambda _: target.copy_(source), seconds, device, 1) * 8 * scale.memory
    with trainer(scale, compile="none") as made:
        flops = flops_per_image(made)
    facts = {
        "bf16_tflops": matrix_rate(device, seconds, scale.matrix) / 1e12,
        "copy_tb_s": copied / 1e12,
        "gflop_an_image": flops / 1e9,
    }
    return {name: round(value, 4) for name, value in facts.items()}


def with_share(found: Row, limits: Row, settings: dict[str, Any]) -> Row:
    """The share of the card's matrix rate, for rows of the network that `card` has counted."""
    if "preset" in settings or "gflop_an_image" not in limits:
        return found
    share = found["images_per_second"] * limits["gflop_an_image"] / (1e3 * limits["bf16_tflops"])
    return {**found, "share_of_matrix": round(share, 4)}


def profiled(scale: Scale, text: Path, **settings: Any) -> Row:
    """Where the time of five steps goes: the kernels that take most, and the share of time in which the GPU works."""
    forget(scale.device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not scale.is_dry)
    key = "self_cpu_time_total" if scale.is_dry else "self_device_time_total"
    with switched(benchmark=True), trainer(scale, **settings) as made:
        for step in range(scale.warm_up):
            made.step(step)
        wait(made.device)
        started = time.perf_counter()
        with profile(activities=activities) as seen:
            for step in range(scale.warm_up, scale.warm_up + 5):
                made.step(step)
            wait(made.device)
        wall = time.perf_counter() - started
    averages = seen.key_averages()
    with text.open("a") as file:
        file.write(f"== {settings}\n{averages.table(sort_by=key, row_limit=30, max_name_column_width=90)}\n")
    events = sorted((e for e in averages if getattr(e, key) > 0), key=lambda e: -getattr(e, key))
    return {
        "wall_seconds": round(wall, 3),
        "busy_seconds": round(sum(getattr(e, key) for e in events) / 1e6, 3),
        "kernels_per_step": sum(e.count for e in events) // 5,
        "top": [[e.key[:70], round(getattr(e, key) / 1e3, 2), e.count] for e in events[:12]],
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--dry", is_flag=True, help="Tiny, on the CPU.")
@click.option("--only", multiple=True, help="Rows of exactly this name.")
@click.option("--profile", "traced", is_flag=True, help="Trace the rows; the tables go beside FILE, as FILE.txt.")
def main(out: Path, dry: bool, only: tuple[str, ...], traced: bool) -> None:
    scale, chosen = DRY if dry else FULL, [name for name in ROWS if not only or name in only]
    rows = Rows(out, "benchmarks.gpu.training", scale.device)
    if traced:
        for name in chosen:
            rows.find(name, partial(profiled, scale, out.with_suffix(".txt"), **ROWS[name]))
        return
    limits = rows.find("the card", partial(card, scale))
    for name in chosen:
        rows.find(name, partial(row, scale, limits, **ROWS[name]))


if __name__ == "__main__":
    main()
