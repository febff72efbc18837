"""The tests that need no torch, and what they need."""

from __future__ import annotations

from tests.support.environments import run_tests
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
