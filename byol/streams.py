"""Standard streams that cost no work: a closed one leads nowhere, an unreadable note is lost. Torch-free."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

STDERR = 2
READ_ALREADY = "BYOL_STANDARD_INPUT"  # the file that holds what a launcher read from there, for each of its processes
_reader_gone = False


def prepare() -> None:
    """Make the standard streams of this process safe; for commands, before they open a file.

    Where one is closed, the next file would get its number, and what libraries print would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr else "utf-8"
        raw = io.BufferedWriter(_Unfailing(STDERR, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)


class _Unfailing(io.FileIO):
    """Takes everything; what cannot be written is lost."""

    def write(self, data: Any) -> int:
        """Write what can be written; the number of bytes of it all."""
        global _reader_gone
        try:
            written = super().write(data)
        except OSError as error:
            _reader_gone = _reader_gone or error.errno == errno.EPIPE
            written = None
        return memoryview(data).nbytes if written is None else written  # None: full, and not to be waited for


def standard_input() -> bytes:
    """All of standard input, also where the launcher of this process has read it."""
    kept = os.environ.get(READ_ALREADY)
    return Path(kept).read_bytes() if kept else sys.stdin.buffer.read()


def reader_is_gone() -> bool:
    """Whether standard error is a pipe that nobody reads any more."""
    return _reader_gone
