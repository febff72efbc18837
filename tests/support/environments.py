"""Environments of their own for checks: the lowest versions that pyproject.toml allows, and a Python that has them."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.small import REPOSITORY


def dependencies(extra: str = "") -> list[Requirement]:
    """The dependencies of this platform: the base's, or an extra's."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return [found for found in map(Requirement, texts) if found.marker is None or found.marker.evaluate()]


def floors(extra: str = "") -> list[str]:
    """`name==version` of each of them that has a lowest version."""
    specs = [(found.name, spec) for found in dependencies(extra) for spec in found.specifier]
    return [f"{name}=={spec.version}" for name, spec in specs if spec.operator == ">="]


def environment(folder: str | Path, packages: Sequence[str], python: str) -> str:
    """The Python of an environment made by `python`, with these packages; one that is there is used again."""
    if not (Path(folder) / "pyvenv.cfg").exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    own = str(Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python")
    subprocess.run([own, "-m", "pip", "install", "--quiet", *packages], check=True)
    return own


def run_tests(python: str, tests: Sequence[str], *options: str) -> int:
    """The status of pytest, run by an interpreter that does not have byol installed."""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    call = [python, "-m", "pytest", "-p", "no:cacheprovider", *options, *tests]
    return subprocess.run(call, cwd=REPOSITORY, env=variables, check=False).returncode
