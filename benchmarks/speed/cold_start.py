"""What a serving machine pays: size of the installation without torch, and `byol` from cold on one image.

    python -m benchmarks.speed.cold_start BUNDLE IMAGE --out FILE.json [--rounds 5]

Builds the wheel, installs it alone into a fresh environment, and times commands there. The first round reads the files
from disk where the system allows to drop its cache (root), the others find them in memory.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.rows import Row, Rows
from benchmarks.speed.peak import measured
from byol.children import ROOT


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def drop_caches() -> bool:
    """Whether the system forgot what it had read from disk."""
    with contextlib.suppress(OSError):
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    return False


def installed(work: Path) -> Row:
    """The wheel alone in a fresh environment, work/venv."""
    build: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--outdir", work / "dist", ROOT]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / "bin" / "python"
    before = size_of(work / "venv")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *(work / "dist").glob("*.whl")], check=True)
    parts = {path.name: size_of(path) for path in (work / "venv").glob("lib/python*/site-packages/*/")}
    largest = sorted(parts, key=lambda part: -parts[part])[:6]
    return {
        "megabytes": round((size_of(work / "venv") - before) / 1e6),
        "largest_packages_mb": {part: round(parts[part] / 1e6) for part in largest},
    }


def timed(command: list[Any], work: Path, rounds: int) -> Row:
    cold = drop_caches()
    figures = [measured(command, work, PYTHONPATH="") for _ in range(1 + rounds)]
    return {
        "from_disk_seconds": round(figures[0][0], 3) if cold else None,
        "seconds": round(statistics.median(seconds for seconds, *_ in figures[1:]), 3),
        "peak_gb": round(max(peak for _, peak, _ in figures), 3),
    }


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--rounds", default=5, show_default=True)
def main(bundle: Path, image: Path, out: Path, rounds: int) -> None:
    os.environ.pop("PYTHONPATH", None)  # pip would take this checkout for an installed byol
    rows = Rows(out, "benchmarks.speed.cold_start")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        rows.find("installation", partial(installed, work))
        byol = work / "venv" / "bin" / "byol"
        extract = [byol, "extract", bundle.resolve(), image.resolve(), "--out", "one.parquet", "--device", "cpu"]
        commands: dict[str, list[Any]] = {
            "byol --help": [byol, "--help"],
            "byol info": [byol, "info", bundle.resolve()],
            "byol extract, one image": extract,
        }
        for title, command in commands.items():
            rows.find(title, partial(timed, command, work, rounds))


if __name__ == "__main__":
    main()
