"""What all benchmarks share: rows, of which a failure is one, the file that holds them, and child processes.

Standard library only, apart from `machine`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from byol.children import ROOT
from byol.files.atomic import atomic_file
from byol.text import first_line

Row = dict[str, Any]
FAILED = "failed"  # the key of a row that says why there are no figures

PACKAGES = ("torch", "torchvision", "onnxruntime-gpu", "lightly", "byol-pytorch", "numpy", "pillow")


class Rows:
    """The rows of a benchmark, in the order in which they were found, and their file, written whole after each.

    `facts` stand before the rows. With `goes_on`, finished rows of an earlier call are kept and not done again.
    """

    def __init__(self, out: Path, module: str, device: str = "cpu", goes_on: bool = False, **facts: Any) -> None:
        self.out, self.rows = out, list[Row]()
        self.facts = {"command": command_line(f"python -m {module}"), **facts, "machine": machine(device)}
        if goes_on and out.exists():
            self.rows = [row for row in json.loads(out.read_bytes())["rows"] if FAILED not in row]

    def find(self, name: str, work: Callable[[], Mapping[str, Any]], **keys: Any) -> Row:
        """Do the work of a row, named with `keys`; what it raises is a row too, the others are done all the same.

        A finished row with this name and these keys is returned as it is.
        """
        row = {"row": name, **keys}
        known = next((one for one in self.rows if row.items() <= one.items()), None)
        return known if known is not None else self.add({**row, **attempt(work)})

    def add(self, row: Row) -> Row:
        """Take a row in, show it and write the file."""
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.out) as file:
            file.write_text(json.dumps({**self.facts, "rows": self.rows}, indent=2) + "\n")
        return row

    def medians(self, figure: str) -> dict[str, float]:
        """The median of a figure over the rounds of each row that has it."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if figure in row:
                found.setdefault(row["row"], []).append(row[figure])
        return {name: statistics.median(values) for name, values in found.items()}


def attempt(work: Callable[[], Mapping[str, Any]]) -> Row:
    """What the work found, or why it failed."""
    try:
        return dict(work())
    except (Exception, SystemExit) as error:  # also a command that gives up
        return {FAILED: f"{type(error).__name__}: {first_line(error)}"}


class ChildFailed(RuntimeError):
    """A child process failed; the message is the last line that it said."""


def environment() -> dict[str, str]:
    """For child processes: they find this checkout first, then what PYTHONPATH names."""
    path = filter(None, [ROOT, os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def start(*words: object, variables: Mapping[str, str] | None = None, **streams: Any) -> subprocess.Popen[str]:
    """`python -m WORDS...` with the environment above and `variables`; `streams` go to `Popen`."""
    call = [sys.executable, "-m", *map(str, words)]
    return subprocess.Popen(call, env={**environment(), **(variables or {})}, text=True, errors="replace", **streams)


def said(*words: object, log: TextIO | None = None) -> str:
    """The standard output of `python -m WORDS...`; its stderr goes to `log`, or to ours, line by line.

    Raises `ChildFailed`.
    """
    last = ""
    with tempfile.TemporaryFile("w+") as out:
        with start(*words, stdout=out, stderr=subprocess.PIPE) as process:
            for line in process.stderr or ():
                print(line, end="", file=log or sys.stderr, flush=True)
                last = line.strip() or last
        if process.returncode:
            raise ChildFailed(last or f"{words[0]} ended with status {process.returncode}")
        out.seek(0)
        return out.read()


def byol(*words: object, log: TextIO | None = None) -> str:
    """The standard output of a `byol` command. Raises `ChildFailed`."""
    return said("byol", *words, log=log)


def command_line(name: str) -> list[str]:
    """How this process was called, without places of this machine: paths by their last parts, no --out."""
    words = sys.argv[1:]
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]

    def shown(word: str) -> str:
        label, equals, place = word.rpartition("=")
        return f"{label}{equals}{'/'.join(Path(place).parts[-2:])}" if Path(place).exists() else word

    return [name, *map(shown, words)]


def machine(device: str) -> dict[str, Any]:
    """What was measured on (`device` is cpu, cuda or auto), and with which versions."""
    name = f"{platform.processor() or platform.machine()} CPU"
    if device != "cpu":
        import torch

        name = torch.cuda.get_device_name() if torch.cuda.is_available() else name
    packages = {package: _version(package) for package in PACKAGES}
    return {"device": name, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), **packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
