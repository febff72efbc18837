"""Builds the wheel, installs it where torch is not, and runs every serving command on a bundle made here.

Twice: alone, as `pip install` does it, and beside the plain ONNX Runtime of requirements-cpu.txt. Run it as
`make wheel-check`. It is a script, not a test: it needs a package index and about two minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.support.runs import run_training
from tests.support.small import REPOSITORY, RESNET18, config, folder

# Every module but those that need torch, or a package of an extra.
IMPORT_ALL = """
import importlib, pkgutil, byol
apart = ("byol.encoders", "byol.training", "byol.finetuning", "byol.pretrained", "byol.commands", "byol.export",
         "byol.__main__", "byol.serve.report", "byol.serve.commands.report", "byol.serve.server",
         "byol.images.remote.http")
names = [name for _, name, _ in pkgutil.walk_packages(byol.__path__, "byol.", onerror=lambda _: None)]
kept = [name for name in names if not any(name == part or name.startswith(part + ".") for part in apart)]
for name in kept:
    importlib.import_module(name)
print(len(names), len(kept))
"""


def run(*command: object, cwd: Path) -> str:
    """Output of a command that must succeed; its own process, no checkout on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Exit status 0 when everything worked."""
    from byol.export.exporter import export_bundle

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        train = folder(work / "train", per_class=20)
        test = folder(work / "test", per_class=5, start=9000)
        run_training(config(**RESNET18, epochs=1), train, work / "run", None)
        export_bundle(work / "run", work / "bundle")
        run(sys.executable, "-m", "build", "--wheel", "--outdir", work / "dist", REPOSITORY, cwd=work)
        (wheel,) = (work / "dist").glob("*.whl")
        installs: list[list[tuple[object, ...]]] = [
            [(wheel,)],
            [("-r", REPOSITORY / "requirements-cpu.txt"), ("--no-deps", wheel)],
        ]
        for number, install in enumerate(installs):
            venv.create(work / f"venv-{number}", with_pip=True)
            bin_folder = work / f"venv-{number}" / ("Scripts" if os.name == "nt" else "bin")
            for words in install:
                run(bin_folder / "python", "-m", "pip", "install", "--quiet", *words, cwd=work)
            check(work, bin_folder, train, test)
        wheels = json.loads(run(bin_folder / "byol", "doctor", "--json", cwd=work))["wheels"]
        assert wheels.keys() == {"onnxruntime"}, wheels
    print("2 passed, 0 failed")


def check(work: Path, bin_folder: Path, train: Path, test: Path) -> None:
    """Every serving command in a fresh environment, and no torch there."""
    byol, python = bin_folder / "byol", bin_folder / "python"
    absent = subprocess.run([python, "-c", "import torch"], cwd=work, capture_output=True, text=True, check=False)
    assert absent.returncode != 0, "torch is installed where it must not be"
    assert "No module named 'torch'" in absent.stderr, absent.stderr
    held, imported = map(int, run(python, "-c", IMPORT_ALL, cwd=work).split())
    assert held > imported > 80, (held, imported)
    assert "Commands:" in run(byol, "--help", cwd=work)
    assert "resnet18" in run(byol, "info", "bundle", cwd=work)
    run(byol, "info", "--verify", "bundle", cwd=work)
    run(byol, "doctor", cwd=work)
    extracted = json.loads(run(byol, "extract", "bundle", train, "--out", "train.parquet", "--json", cwd=work))
    assert (extracted["images"], extracted["skipped"], extracted["dim"]) == (40, 0, 512), extracted
    for command in ("knn", "linear"):
        result = json.loads(run(byol, command, "bundle", "--train", train, "--test", test, "--json", cwd=work))
        assert (result["n_train"], result["n_test"]) == (40, 10), result
        assert 0 <= result["top1"] <= 1, result
    found = json.loads(run(byol, "duplicates", "train.parquet", "--out", "pairs.parquet", "--json", cwd=work))
    assert found["images"] == 40, found
    message = subprocess.run(
        [byol, "train", train, "--out", "x"], cwd=work, capture_output=True, text=True, check=False
    )
    assert message.returncode == 1, message.stderr
    assert "pip install '.[train]'" in message.stderr, message.stderr
    assert "Traceback" not in message.stderr, message.stderr


if __name__ == "__main__":
    main()
