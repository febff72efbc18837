"""Inference on a GPU: what byol opens, ONNX Runtime with other options and ways of feeding it, and torch.

    python -m benchmarks.gpu.inference --out FILE.json --work DIR [--encoder 0] [--dry] [--warm]

Images/s from uint8 images on the host to features on the host, unless a row says otherwise. The bundle is that of
`benchmarks.gpu.parity`; torch's rows need none. `--warm` only fills torch.compile's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.gpu.scale import DRY, FULL, Scale
from benchmarks.gpu.serving import Bound, Options, noise, place, session
from benchmarks.rows import Row, Rows
from benchmarks.speed.inference import images_per_second, torch_run
from byol.serve import Encoder

QUICK = {"cudnn_conv_algo_search": "HEURISTIC"}  # as byol opens them, apart from TF32
NHWC = {**QUICK, "prefer_nhwc": "1"}
SMALL_WORKSPACE = {"cudnn_conv_use_max_workspace": "0"}
FP16, FP32 = "encoder.fp16.onnx", "encoder.onnx"

OPTIONS: dict[str, tuple[str, Options]] = {
    "ort fp16": (FP16, QUICK),
    "ort fp16, prefer_nhwc": (FP16, NHWC),
    "ort fp16, exhaustive search": (FP16, {}),
    "ort fp16, small workspace": (FP16, {**QUICK, **SMALL_WORKSPACE}),
    "ort fp16, prefer_nhwc, small workspace": (FP16, {**NHWC, **SMALL_WORKSPACE}),
    "ort fp32": (FP32, {**QUICK, "use_tf32": "0"}),
    "ort fp32, TF32": (FP32, {**QUICK, "use_tf32": "1"}),
    "ort fp32, prefer_nhwc": (FP32, {**NHWC, "use_tf32": "0"}),
    "ort fp32, TF32, prefer_nhwc": (FP32, {**NHWC, "use_tf32": "1"}),
}
TORCH: dict[str, dict[str, Any]] = {
    "torch fp32, TF32 off": {"tf32": False},
    "torch fp32, TF32": {"tf32": True},
    "torch channels_last fp32, TF32": {"tf32": True, "channels_last": True},
    "torch channels_last fp16": {"dtype": "fp16", "channels_last": True},
    "torch channels_last fp16, on the device": {"dtype": "fp16", "channels_last": True, "resident": True},
}
COMPILED = "torch channels_last bf16, compile"


class Trial:
    """One encoder: its bundle and images."""

    def __init__(self, scale: Scale, work: Path, number: int) -> None:
        self.scale, (self.arch, self.side) = scale, scale.encoders[number]
        self.bundle = place(work, self.arch) / "bundle"
        self.batch = scale.batches[-1]
        self.encoder = cache(partial(Encoder, self.bundle, scale.device, self.batch))

    def rate(self, run: Callable[[], object], batch: int) -> Row:
        return {"images_per_second": round(images_per_second(run, batch, self.scale.seconds), 1)}

    def ours(self, variant: str, batch: int) -> Row:
        encoder, pixels = self.encoder(variant), noise(batch, self.side)
        return self.rate(lambda: encoder.encode(pixels), batch)

    def plain(self, graph: str, options: Options) -> Row:
        made, pixels = session(self.bundle / graph, self.scale, options), noise(self.batch, self.side)
        return self.rate(lambda: made.run(None, {"images": pixels}), self.batch)

    def buffers(self, device: str, count: int = 1) -> list[Bound]:
        """Runs of one session on buffers of their own: pinned ones of the host, or the device's."""
        made = session(self.bundle / FP16, self.scale, NHWC)
        where: dict[str, Any] = {"device": device, "pin_memory": device == "cpu" and not self.scale.is_dry}
        width = made.get_outputs()[0].shape[1]
        return [
            Bound(
                made,
                torch.empty((self.batch, self.side, self.side, 3), dtype=torch.uint8, **where),
                torch.empty((self.batch, width), **where),
            )
            for _ in range(count)
        ]

    def bound(self, device: str) -> Row:
        (bound,) = self.buffers(device)
        return self.rate(bound.run, self.batch)

    def overlapped(self) -> Row:
        """While a batch is computed, the next is copied from pinned memory to the device by a stream of its own."""
        dry = self.scale.is_dry
        pixels = torch.from_numpy(noise(self.batch, self.side))
        pinned = pixels if dry else pixels.pin_memory()
        turns, stream = self.buffers(self.scale.device, 2), None if dry else torch.cuda.Stream()
        number = 0

        def run() -> object:
            nonlocal number
            now, following = turns[number % 2], turns[1 - number % 2]
            number += 1
            with torch.cuda.stream(stream) if stream else nullcontext():
                following.images.copy_(pinned, non_blocking=True)
            now.run()
            if stream:
                stream.synchronize()
            return now.features.cpu()

        return self.rate(run, self.batch)

    def threads(self) -> Row:
        """Two threads on one session, each with pinned buffers of its own."""
        turns = self.buffers("cpu", 2)
        with ThreadPoolExecutor(2) as pool:
            return self.rate(lambda: list(pool.map(Bound.run, turns)), 2 * self.batch)

    def torch(self, batch: int, tf32: bool = True, **how: Any) -> Row:
        """From the host to the host, by torch; `how` as in `torch_run`."""
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        run = torch_run(self.arch, self.scale.device, noise(batch, self.side), **how)
        return self.rate(run, batch)

    def compiled(self, batch: int) -> Row:
        return self.torch(batch, channels_last=True, dtype="bf16", compiled=not self.scale.is_dry)

    def agreement(self) -> Row:
        """Whether the ways of feeding a session give what it gives when it is simply run: smallest cosine."""
        pixels = noise(self.batch, self.side)
        made = session(self.bundle / FP16, self.scale, NHWC)
        expected = made.run(None, {"images": pixels})[0]
        facts = {}
        for name, device in (("pinned", "cpu"), ("on the device", self.scale.device)):
            (bound,) = self.buffers(device)
            bound.images.copy_(torch.from_numpy(pixels))
            bound.run()
            found = bound.features.cpu().numpy()
            norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
            facts[name] = float(((expected * found).sum(1) / norms).min())
        return facts


def jobs(trial: Trial) -> list[tuple[str, int, Callable[[], Row]]]:
    """Rows in the order of their value: name, batch, and what finds it."""
    full = trial.batch
    found: list[tuple[str, int, Callable[[], Row]]] = [
        (f"ours {variant}", batch, partial(trial.ours, variant, batch))
        for variant in ("fp16", "fp32")
        for batch in reversed(trial.scale.batches)
    ]
    found += [(COMPILED, batch, partial(trial.compiled, batch)) for batch in reversed(trial.scale.batches)]
    found += [(name, full, partial(trial.torch, full, **how)) for name, how in TORCH.items()]
    found += [
        ("ort fp16, prefer_nhwc, pinned input and output", full, partial(trial.bound, "cpu")),
        ("ort fp16, prefer_nhwc, copy overlapped with compute", full, trial.overlapped),
        ("ort fp16, prefer_nhwc, two threads, pinned", full, trial.threads),
        ("ort fp16, prefer_nhwc, on the device", full, partial(trial.bound, trial.scale.device)),
        ("agreement of the ways of feeding", full, trial.agreement),
    ]
    found += [(name, full, partial(trial.plain, *what)) for name, what in OPTIONS.items()]
    return found


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--encoder", "number", default=0, show_default=True, help="Which of the scale's encoders.")
@click.option("--dry", is_flag=True, help="Tiny, on the CPU.")
@click.option("--warm", is_flag=True, help="Only compile.")
def main(out: Path, work: Path, number: int, dry: bool, warm: bool) -> None:
    scale = DRY if dry else FULL
    trial = Trial(scale, work, number)
    rows = Rows(out, "benchmarks.gpu.inference", scale.device, encoder=trial.arch, side=trial.side)
    for name, batch, job in jobs(trial):
        if not warm or name == COMPILED:
            rows.find(name, job, batch=batch)


if __name__ == "__main__":
    main()
