"""The torch-free tests in an environment of their own, with the lowest versions that pyproject.toml allows.

    make floors

The floors of the extras are those of features that are used (see the comments there); they are not run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.small import REPOSITORY
from tests.support.torch_free import NEEDED, run


def floors() -> list[str]:
    """`name==version` of every dependency of this platform."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(text) for text in project["dependencies"]]
    here = [found for found in requirements if found.marker is None or found.marker.evaluate()]
    return [f"{found.name}=={spec.version}" for found in here for spec in found.specifier if spec.operator == ">="]


def main() -> int:
    """Make the environment, run the tests; the status of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python")
        print(f"floors on Python {sys.version.split()[0]}: {', '.join(floors())}", flush=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *floors(), *NEEDED], check=True)
        return run(python)


if __name__ == "__main__":
    sys.exit(main())
