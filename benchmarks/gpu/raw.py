"""What ONNX Runtime itself says when it makes a CUDA session, unmuffled, and on which device its nodes run.

python -m benchmarks.gpu.raw --out FILE.json [--dry]
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort

from benchmarks.gpu.inference import NHWC, QUICK
from benchmarks.gpu.scale import DRY, FULL
from benchmarks.gpu.serving import CPU, CUDA, Options
from benchmarks.rows import Row, Rows
from byol.serve.commands.doctor import convolution
from byol.serve.providers import cuda


def installation() -> Row:
    return {
        "onnxruntime": ort.__version__,
        "build": cuda.build_problem() or "for CUDA",
        "missing_libraries": cuda.missing_libraries(),
        "preload": cuda.preload(),
    }


def convolved(dry: bool, options: Options) -> Row:
    """A convolution; `sum` should be 324."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 2 if dry else 0
    providers = [CPU] if dry else [(CUDA, dict(options)), CPU]
    made = ort.InferenceSession(convolution(), settings, providers=providers)
    total = float(made.run(None, {"x": np.ones((1, 1, 8, 8), np.float32)})[0].sum())
    return {"providers": made.get_providers(), "sum": total}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--dry", is_flag=True, help="On the CPU.")
def main(out: Path, dry: bool) -> None:
    rows = Rows(out, "benchmarks.gpu.raw", (DRY if dry else FULL).device)
    rows.find("installation", installation)
    ort.set_default_logger_severity(2 if dry else 1)
    for options in ({}, {**QUICK, "use_tf32": "0"}, NHWC):
        rows.find(f"session with {options}", partial(convolved, dry, options))


if __name__ == "__main__":
    main()
