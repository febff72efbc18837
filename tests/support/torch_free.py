"""The tests that need no torch, and what they need."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.environments import dependencies, run_tests
from tests.support.small import REPOSITORY

NEEDED = ("pytest", "hypothesis", "markdown-it-py", "scikit-learn")  # by the tests, at any version
TESTS = (
    *("test_imports", "test_console", "test_text", "test_machine", "files/test_atomic", "images/test_source"),
    *("images/test_open", "bundle/test_folder", "bundle/test_manifest", "training/test_config", "serve/test_encoder"),
    *("serve/test_session", "serve/features", "serve/extract/test_resumable", "serve/extract/test_processes"),
    *(
        "serve/duplicates",
        "serve/commands/test_duplicates",
        "serve/evaluate/test_knn",
        "serve/evaluate/test_linear",
        "serve/commands/test_bench",
    ),
    *("serve/commands/test_commands", "serve/commands/test_transfer", "whole/test_bad_input"),
)


def run(python: str) -> int:
    """Run them by an interpreter; the status of pytest."""
    files = [f"tests/{name}{'' if (REPOSITORY / 'tests' / name).is_dir() else '.py'}" for name in TESTS]
    return run_tests(python, files)


def modules() -> list[str]:
    """Their modules, by dotted names."""
    places = [REPOSITORY / "tests" / name for name in TESTS]
    files = [file for place in places for file in (place.rglob("test_*.py") if place.is_dir() else [place])]
    return sorted(".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in files)


def unneeded() -> set[str]:
    """Top-level modules that are installed here and that an environment for these tests does not have."""
    there, wanted = {"byol"}, [*dependencies(), *map(Requirement, NEEDED)]
    while wanted:
        name = canonicalize_name(wanted.pop().name)
        if name not in there:
            there.add(name)
            wanted += _required_by(name)
    owners = packages_distributions().items()
    return {module for module, names in owners if not there & {canonicalize_name(name) for name in names}}


def _required_by(name: str) -> list[Requirement]:
    try:
        found = map(Requirement, requires(name) or [])
    except PackageNotFoundError:  # of another platform
        return []
    return [wanted for wanted in found if wanted.marker is None or wanted.marker.evaluate({"extra": ""})]
