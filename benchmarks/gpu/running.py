"""Runs steps: each with a log and a limit of its own; none stops another, and each is a row as soon as it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from benchmarks.gpu.steps import Group, Step
from benchmarks.rows import FAILED, Row, Rows
from byol.children import ROOT

GRACE = 10.0  # seconds between asking a step to end and ending it: `byol train` saves where it is
SHOWN = 20_000  # characters of a log that are kept among the results


class Process(Protocol):
    """What is needed of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...


def begin(step: Step, path: Path, variables: Mapping[str, str]) -> Process:
    """Start the command of a step, in a process group of its own; all that it says goes to the file at `path`."""
    with path.open("w") as log:
        return subprocess.Popen(
            step.words, cwd=ROOT, env=dict(variables), stdout=log, stderr=log, start_new_session=True
        )


class Running:
    """A step that has begun: its process group, its log, and when its time is over."""

    def __init__(self, step: Step, limit: float, logs: Path, variables: Mapping[str, str]) -> None:
        self.step, self.limit, self.began, self.asked = step, limit, time.monotonic(), False
        self.log = logs / f"{step.name}.log"
        self.process = begin(step, self.log, variables)

    def ended(self) -> bool:
        """Whether it has ended; past its limit it is asked to, then ended."""
        over = time.monotonic() - self.began - self.limit
        if over > GRACE:
            self.send(signal.SIGKILL)
        elif over > 0 and not self.asked:
            self.asked = True
            self.send(signal.SIGTERM)
        return self.process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        """A signal to all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def row(self) -> Row:
        """What became of it: the result that it printed, or the last line that it said."""
        self.send(signal.SIGKILL)  # what it may have left running
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else "said nothing"
        row: Row = {"row": self.step.name, "seconds": round(time.monotonic() - self.began, 1)}
        if self.asked:
            return {**row, FAILED: f"more than {self.limit:.0f} s; last line: {last}"}
        if self.process.returncode:
            row |= {"status": self.process.returncode, FAILED: last}
        with contextlib.suppress(ValueError):
            if self.step.shows_json:
                row["said"] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
        return row


def run_group(group: Group, rows: Rows, logs: Path, variables: Mapping[str, str], deadline: float) -> None:
    """All steps of a group at once; `deadline` (of `time.monotonic`) is the end of the whole call."""
    running: list[Running] = []
    try:
        for step in group:
            left = deadline - time.monotonic()
            if left < 1:
                rows.add({"row": step.name, FAILED: "no time was left"})
                continue
            try:
                running.append(Running(step, min(step.limit, left), logs, variables))
            except OSError as error:  # no such program
                rows.add({"row": step.name, FAILED: str(error)})
        while running:
            for one in [one for one in running if one.ended()]:
                running.remove(one)
                rows.add(one.row())
                (rows.out.parent / one.log.name).write_text(one.log.read_text(errors="replace")[-SHOWN:])
            time.sleep(0.05)
    finally:
        for one in running:
            one.send(signal.SIGKILL)
