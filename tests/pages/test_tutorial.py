"""docs/tutorial.md from its first command to its last, as it stands there but for the epochs, on the photographs."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import byol
from tests.support.documents import blocks, code
from tests.support.small import REPOSITORY

PAGE = "tutorial.md"
ARCHIVE = REPOSITORY.parent / "shared" / "data" / "photos.tar.gz"
pytestmark = pytest.mark.skipif(not ARCHIVE.exists(), reason="the photographs are not here")

CLASSES = 10
LABELLED = 20  # of each class
PROGRAMS = f'python() {{ "{sys.executable}" "$@"; }}\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The page's three folders and its script: all training photographs unsorted, 20 a class sorted, the test ones."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "all", filter="data")
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted((tmp_path / "all" / "train").glob("*/*"))):
        (tmp_path / "photos" / f"{number:03d}.jpg").symlink_to(path)
    for folder in (tmp_path / "all" / "train").iterdir():
        (tmp_path / "labelled" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:LABELLED]:
            (tmp_path / "labelled" / folder.name / path.name).symlink_to(path)
    (tmp_path / "all" / "test").rename(tmp_path / "test")
    (block,) = code("tutorial.md", "In production")
    (tmp_path / "classify.py").write_text(block)
    return tmp_path


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of the page with the lines shown below it."""
    for block in blocks(PAGE):
        if block.language == "console":
            for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, shown = part.replace("\\\n", " ").partition("\n")
                yield command, shown.splitlines()


def shell(command: str, folder: Path) -> str:
    """What a terminal in that folder shows of a command, which must succeed; `byol` runs in this process."""
    program, *words = shlex.split(command)
    if program == "byol":
        with contextlib.chdir(folder):
            outcome = byol(*words)
        assert outcome.code == 0, f"{command}\n{outcome.err}"
        return outcome.err + outcome.out
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", PROGRAMS + command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def masked(line: str, classes: set[str]) -> str:
    """A line without what another machine or course of training changes: numbers, device, precision, classes."""
    line = re.sub(r"\b(cpu|cuda|bf16|fp32|[0-9a-f]{64})\b", "*", line)
    line = re.sub("|".join(classes), "CLASS", line)
    line = re.sub(r"\d[\d,]*(\.\d+)?(e[+-]?\d+)?", "#", line)
    return " ".join(line.split())


def assert_shows(said: str, shown: list[str], classes: set[str]) -> None:
    """The page's lines are among those said, in that order; `...` stands for any."""
    lines = iter([masked(line, classes) for line in said.splitlines()])
    for line in shown:
        assert line == "..." or masked(line, classes) in lines, f"{line!r} is not, or not there, in:\n{said}"


def test_every_command_of_the_page_does_what_it_shows(place: Path) -> None:
    classes = {folder.name for folder in (place / "labelled").iterdir()}
    assert len(classes) == CLASSES
    said = {}
    for command, shown in commands():
        said[command] = shell(command.replace("--epochs 20", "--epochs 4"), place)
        assert_shows(said[command], shown, classes)

    last = json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["std_ratio"] > 0.5  # "healthy"
    for command in ("byol knn", "byol linear"):
        (shares,) = (re.search(r"top1 +([\d.]+)%", text) for name, text in said.items() if name.startswith(command))
        assert shares is not None
        assert float(shares[1]) > 15  # ten classes; even an untrained encoder is at 20 to 30

    page = (place / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert all(name in page for name in classes)

    with open(place / "predictions.csv", newline="") as file:
        predicted = {row["id"]: row["predicted"] for row in csv.DictReader(file)}
    assert len(predicted) == 600
    (script,) = (text for name, text in said.items() if name.startswith("python classify.py"))
    for line in script.splitlines():
        path, name, _ = line.split()
        assert predicted[Path(path).name] == name
