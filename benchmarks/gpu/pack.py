"""Packages for a machine without a network, into a folder that `python -m benchmarks.gpu --site FOLDER` takes.

    python -m benchmarks.gpu.pack FOLDER [REQUIREMENT ...] [--python 3.12] [--platform manylinux_2_28_x86_64]

ONNX Runtime for CUDA, what byol needs beside torch's own packages, lightly for its row, and each further requirement
(`nvidia-curand`, where torch does not bring it), without dependencies. As one file: `tar -C FOLDER -cJf site.tar.xz .`
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click

WANTED: tuple[str, ...] = ("onnxruntime-gpu>=1.30", "click", "rich", "markdown-it-py", "mdurl", "pygments")
WANTED += ("safetensors", "threadpoolctl", "onnxscript", "onnx-ir", "lightly", "hydra-core", "omegaconf")
PURE = ("antlr4-python3-runtime==4.9.3",)  # sources only, which omegaconf asks for
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")


def pip(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("requirements", nargs=-1)
@click.option("--python", "version", default="3.12", show_default=True)
@click.option("--platform", "platforms", multiple=True, default=PLATFORMS, show_default=True)
def main(folder: Path, requirements: tuple[str, ...], version: str, platforms: tuple[str, ...]) -> None:
    there = ["--implementation", "cp", "--python-version", version, "--only-binary", ":all:"]
    there += [word for name in platforms for word in ("--platform", name)]
    with tempfile.TemporaryDirectory() as wheels:
        for requirement in PURE:
            pip("wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, requirement)
        pip("download", "--quiet", "--no-deps", *there, "--dest", wheels, *WANTED, *requirements)
        pip("install", "--quiet", "--no-deps", *there, "--target", folder, *Path(wheels).glob("*.whl"))


if __name__ == "__main__":
    main()
