"""The tests that need torch, in an environment of their own with the oldest torch that pyproject.toml allows.

    make oldest-torch [OLDEST_PYTHON=python3.12] [OLDEST_TESTS='tests/export ...']

What belongs to torch has its floor's version, everything else its newest: lower ones are not claimed to work together.
With --keep FOLDER the environment stays and is used again. It takes 5 GB where the index has torch for CUDA only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

from tests.support.environments import environment, floors, run_tests
from tests.support.torch_free import NEEDED

OF_TORCH = ("torch", "torchvision", "onnxscript")
FURTHER = ("pytest-xdist", "dill", "tritonclient[grpc,http]")  # that tests import
TESTS = (
    "tests/training",
    "tests/export",
    "tests/encoders",
    "tests/finetuning",
    "tests/benchmarks",
    "tests/whole/test_demo.py",
)


def packages() -> list[str]:
    """What the tests need."""
    oldest = [pinned for pinned in floors("train") if pinned.partition("==")[0] in OF_TORCH]
    base = [pinned.replace("==", ">=") for pinned in floors()]
    return [*oldest, *base, "timm", *NEEDED, *FURTHER]


def runs(python: str) -> bool:
    """Whether there is such an interpreter: a name on PATH may be a shim for one that is not installed."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def main() -> int:
    """Make the environment, run the tests; the status of pytest."""
    parser = argparse.ArgumentParser("python -m tests.checks.oldest_torch", description=__doc__)
    parser.add_argument("tests", nargs="*", default=TESTS)
    parser.add_argument("--python", default="python3.12", help="The interpreter; this one where it is not found.")
    parser.add_argument("--keep", help="The folder of an environment that stays.")
    given = parser.parse_args()
    python = given.python if runs(given.python) else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        print(f"{python}: {', '.join(packages())}", flush=True)
        own = environment(given.keep or folder, packages(), python)
        return run_tests(own, given.tests, "-n", "2", "--dist", "loadfile", "-q")


if __name__ == "__main__":
    sys.exit(main())
