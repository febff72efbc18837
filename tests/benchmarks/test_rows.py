"""A benchmark keeps what it has found, whatever happens to its other rows."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from benchmarks.rows import ChildFailed, Rows, environment, said
from byol.children import ROOT

BENCHMARKS = Path(ROOT) / "benchmarks"


def rows_of(path):
    return json.loads(path.read_bytes())["rows"]


def gives_up():
    sys.exit("the package is missing")


def test_a_row_that_fails_is_a_row_and_the_next_one_is_found(tmp_path):
    rows = Rows(tmp_path / "a" / "found.json", "benchmarks.nothing", options={"seconds": 1})
    rows.find("first", lambda: {"figure": 2.0}, round=1)
    assert rows_of(rows.out) == [{"row": "first", "round": 1, "figure": 2.0}]
    rows.find("second", lambda: {"figure": 1 / 0}, round=1)
    rows.find("third", gives_up, round=1)
    assert rows_of(rows.out)[1:] == [
        {"row": "second", "round": 1, "failed": "ZeroDivisionError: division by zero"},
        {"row": "third", "round": 1, "failed": "SystemExit: the package is missing"},
    ]
    rows.find("first", lambda: {"figure": 4.0}, round=2)
    assert rows.medians("figure") == {"first": 3.0}
    assert json.loads(rows.out.read_bytes())["options"] == {"seconds": 1}


def test_an_interrupt_is_no_row(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    rows = Rows(tmp_path / "found.json", "benchmarks.nothing")
    rows.find("first", dict)
    with pytest.raises(KeyboardInterrupt):
        rows.find("second", interrupted)
    assert rows_of(rows.out) == [{"row": "first"}]


def test_called_again_it_does_only_what_is_missing(tmp_path):
    first = Rows(tmp_path / "found.json", "benchmarks.nothing", goes_on=True)
    first.find("a", lambda: {"figure": 1}, seed=0)
    first.find("b", gives_up, seed=0)
    again = Rows(tmp_path / "found.json", "benchmarks.nothing", goes_on=True)
    assert again.find("a", gives_up, seed=0) == {"row": "a", "seed": 0, "figure": 1}
    again.find("a", lambda: {"figure": 2}, seed=1)
    again.find("b", lambda: {"figure": 3}, seed=0)
    assert [(row["row"], row["seed"], row["figure"]) for row in rows_of(again.out)] == [
        ("a", 0, 1),
        ("a", 1, 2),
        ("b", 0, 3),
    ]


def test_children_find_this_checkout_first_and_keep_what_the_caller_gave(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert environment()["PYTHONPATH"].split(os.pathsep) == [ROOT, str(tmp_path)]
    (tmp_path / "outside.py").write_text("import byol; print(byol.__file__)")
    monkeypatch.chdir(tmp_path)
    assert said("outside").strip() == str(Path(ROOT) / "byol" / "__init__.py")
    (tmp_path / "outside.py").write_text("import not_there")
    with pytest.raises(ChildFailed, match=r"^ModuleNotFoundError: No module named 'not_there'$"):
        said("outside")


def test_no_benchmark_makes_an_environment_or_a_results_file_of_its_own():
    others = [path for path in BENCHMARKS.rglob("*.py") if path.name != "rows.py"]
    assert len(others) > 25
    own = re.compile(r"\*\*os\.environ|environ\.setdefault|\.write_text\(json\.dumps")
    assert {path.name: found for path in others if (found := own.findall(path.read_text()))} == {}
