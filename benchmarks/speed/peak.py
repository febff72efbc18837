"""Seconds and peak memory of processes. `getrusage` will not do: what a child inherits from its parent counts there."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import ChildFailed
from benchmarks.rows import environment as for_children

POLL_SECONDS = 0.002


def peak_gb(pid: int) -> float:
    """The most memory that a living process has held, in GB."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e9


def measured(command: list[Any], folder: Path, **environment: str) -> tuple[float, float, str]:
    """Seconds, peak GB (as last seen before the end) and output of a command that must succeed."""
    variables = {name: value for name, value in {**for_children(), **environment}.items() if value}
    started = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    peak = 0.0
    while process.poll() is None:
        with contextlib.suppress(OSError, ValueError):  # it has just ended
            peak = max(peak, peak_gb(process.pid))
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - started
    said, _ = process.communicate()
    if process.returncode:
        raise ChildFailed(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return seconds, peak, said
