"""Export of an encoder, and how far ONNX Runtime on CUDA is from torch's golden features.

    python -m benchmarks.gpu.parity --out FILE.json --work DIR [--encoder 0] [--dry]

Random weights, whose norms have seen images. Leaves the bundle in DIR for `benchmarks.gpu.inference`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.gpu.inference import FP16, FP32, NHWC, QUICK
from benchmarks.gpu.scale import DRY, FULL, Scale
from benchmarks.gpu.serving import Options, place, session
from benchmarks.rows import Row, Rows
from benchmarks.speed.inference import write_bundle, write_checkpoint
from byol.bundle.folder import Bundle
from byol.bundle.parity import GATES, compare_features

ROWS: dict[str, tuple[str, Options]] = {
    "fp32": (FP32, {**QUICK, "use_tf32": "0"}),
    "fp32, TF32": (FP32, {**QUICK, "use_tf32": "1"}),
    "fp32, prefer_nhwc": (FP32, {**NHWC, "use_tf32": "0"}),
    "fp16": (FP16, QUICK),
    "fp16, prefer_nhwc": (FP16, NHWC),
}


def export(work: Path, arch: str, side: int) -> Row:
    work.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (32, side, side, 3), dtype=np.uint8)
    write_checkpoint(work / "weights.pth", arch, side, images)
    return {"seconds": write_bundle(work, arch, side, "--precision", "fp16")["seconds"]}


def parity(bundle: Path, scale: Scale, graph: str, options: Options) -> Row:
    """Largest relative error and smallest cosine to torch's features on a CPU, and what the gate says of them."""
    images, expected = Bundle.open(bundle).golden()
    found = session(bundle / graph, scale, options).run(None, {"images": images})[0]
    error, cosine = compare_features(expected, found)
    return {"relative_error": error, "cosine": cosine, "gate": GATES[graph].problem(error, cosine) or "passed"}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--encoder", "number", default=0, show_default=True, help="Which of the scale's encoders.")
@click.option("--dry", is_flag=True, help="Tiny, on the CPU.")
def main(out: Path, work: Path, number: int, dry: bool) -> None:
    scale = DRY if dry else FULL
    arch, side = scale.encoders[number]
    rows = Rows(out, "benchmarks.gpu.parity", scale.device, encoder=arch, side=side)
    rows.find("export", partial(export, place(work, arch), arch, side))
    for name, (graph, options) in ROWS.items():
        rows.find(name, partial(parity, place(work, arch) / "bundle", scale, graph, options))


if __name__ == "__main__":
    main()
