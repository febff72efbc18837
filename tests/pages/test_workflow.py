"""The workflow for a code forge: it was never run there, so what can be checked of it is checked here."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from tests.support.small import REPOSITORY
from tests.support.torch_free import NEEDED, TESTS

yaml = pytest.importorskip("yaml")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    read: dict[Any, Any] = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    return read


def test_it_may_do_little_and_names_versions(workflow: dict[Any, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` so
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(
        set(job) <= {"name", "strategy", "runs-on", "timeout-minutes", "steps"} for job in workflow["jobs"].values()
    )
    used = [step["uses"] for step in steps if "uses" in step]
    assert len(used) == 4
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)


def test_it_runs_what_is_there_on_the_pythons_that_the_project_names(workflow: dict[Any, Any]) -> None:
    job = workflow["jobs"]["torch-free"]
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert job["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [
        f"python -m pip install -r requirements-cpu.txt {' '.join(NEEDED)}",
        "python -m tests.checks.torch_free",
    ]
    assert [step["run"] for step in workflow["jobs"]["everything"]["steps"] if "run" in step] == ["bash .ci/run"]
    files = [REPOSITORY / "tests" / name for name in TESTS]
    assert all(file.is_dir() or file.with_suffix(".py").is_file() for file in files)
