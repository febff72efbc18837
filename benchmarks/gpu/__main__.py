"""Everything that waits for a GPU, in three calls: see README.md here.

python -m benchmarks.gpu one|two|three --out DIR [--work DIR] [--site PATH ...] [--limit SECONDS] [--only STEP ...]
python -m benchmarks.gpu three --out DIR --train SRC --test SRC --epochs N
python -m benchmarks.gpu one two three --out DIR --dry
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.running import run_group
from benchmarks.gpu.steps import CALLS, Trial, tiny_images
from benchmarks.gpu.summary import summary
from benchmarks.rows import Row, Rows, environment


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("calls", nargs="+", choices=CALLS)
    parser.add_argument("--out", type=Path, required=True, help="Results: a JSON file and a log for each step.")
    work = Path(tempfile.gettempdir()) / "byol-gpu"
    parser.add_argument("--work", type=Path, default=work, help=f"What later calls use  [default: {work}]")
    parser.add_argument("--site", type=Path, action="append", default=[], help="Packages: a folder or .tar.xz of one.")
    parser.add_argument("--limit", type=float, default=1e6, help="Seconds for all of it.")
    parser.add_argument("--only", action="append", default=[], help="Steps of this name.")
    parser.add_argument("--dry", action="store_true", help="All of it on the CPU, tiny.")
    parser.add_argument("--train", default="cifar10/train", help="Labelled images for call three.")
    parser.add_argument("--test", default="cifar10/test")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--compile", default="all", help="What call three compiles.")
    return parser.parse_args()


def unpack(packages: Path, site: Path) -> Row:
    """Add packages to the folder that is searched first."""
    site.mkdir(parents=True, exist_ok=True)
    if packages.is_dir():
        shutil.copytree(packages, site, dirs_exist_ok=True, symlinks=True)
    else:
        with tarfile.open(packages) as archive:
            archive.extractall(site, filter="data")
    return {"packages": sorted(path.name for path in site.glob("*.dist-info"))}


def link_cuda(site: Path) -> Row:
    """Lay links to the CUDA libraries that came with torch beside ONNX Runtime, which looks for them there."""
    found = importlib.util.find_spec("nvidia")
    folders = found.submodule_search_locations or [] if found and (site / "onnxruntime").exists() else []
    libraries = [(Path(folder), library) for folder in folders for library in Path(folder).rglob("*.so*")]
    for folder, library in libraries:
        link = site / "nvidia" / library.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(library)
    return {"libraries": len(libraries)}


def variables(work: Path, dry: bool) -> dict[str, str]:
    """The environment of every step. Dry ones that run side by side would wait for each other's threads."""
    inherited = environment() | ({"OMP_NUM_THREADS": "1"} if dry else {})
    path = os.pathsep.join([str(work / "site"), inherited["PYTHONPATH"]])
    caches = {"BYOL_HOME": str(work / "home"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    return {**inherited, **caches, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    given = arguments()
    deadline = time.monotonic() + given.limit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the steps end too
    out, work = given.out.resolve(), given.work.resolve()
    (work / "logs").mkdir(parents=True, exist_ok=True)
    rows = Rows(out / f"steps-{'-'.join(given.calls)}.json", "benchmarks.gpu", "cpu", calls=given.calls)
    for packages in given.site:
        rows.find("unpack", partial(unpack, packages, work / "site"), packages=packages.name)
    rows.find("link CUDA", partial(link_cuda, work / "site"))
    if given.dry:
        given.epochs, (given.train, given.test) = 1, tiny_images(work / "images")
    trial = Trial(out, work, given.dry, given.train, given.test, given.epochs, given.compile)
    for call in given.calls:
        for group in CALLS[call](trial):
            chosen = [step for step in group if not given.only or step.name in given.only]
            run_group(chosen, rows, work / "logs", variables(work, given.dry), deadline)
    print(summary({path.stem: json.loads(path.read_bytes()) for path in sorted(out.glob("*.json"))}))


if __name__ == "__main__":
    main()
