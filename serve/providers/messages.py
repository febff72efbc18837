"""What ONNX Runtime prints: kept off the standard streams, and its own reason where it raises no exception."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

import onnxruntime as ort

from byol.console import STDERR
from byol.text import as_message

FATAL, ERROR, WARNING = 4, 3, 2  # ONNX Runtime's severities; the last is its default
# "\x1b[1;31m2026-01-31 12:00:00.123 [E:onnxruntime:Default, a.cc:1 f] b.cc:2 g [ONNXRuntimeError] : 1 : FAIL : why"
_LINE = re.compile(
    r"(\x1b\[[\d;]*m)?\d{4}-\d\d-\d\d [\d:.]+ \[[EF]:onnxruntime:[^\]]*\] (.*?)(?(1)\x1b\[m\n?|(?:\n|\Z))", re.DOTALL
)
_PLACE = re.compile(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ")
_FOLDERS = re.compile(r"(?:[A-Za-z]:)?[\\/][^\s:]*[\\/]")

_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def quiet(severity: int = FATAL) -> Iterator[None]:
    """Keep ONNX Runtime's own lines about a missing provider off stderr; we say it in one sentence."""
    ort.set_default_logger_severity(severity)
    try:
        yield
    finally:
        ort.set_default_logger_severity(WARNING)


def said_during(call: Callable[[], object]) -> str:
    """Why a call fails, by the first error that ONNX Runtime logs meanwhile; "" when it logs none.

    It writes to file descriptor 2 and takes no function instead, so that is a file during the call. What anybody else
    writes there appears afterwards. For a call that has failed silently before. Where no file can be made, it is not
    called again.
    """
    with _one_at_a_time, contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile())
        except OSError:  # a container that nothing can be written in
            return ""
        try:
            with _standard_error_in(file.fileno()), quiet(ERROR), contextlib.suppress(Exception):
                call()
        finally:
            file.seek(0)
            text = file.read().decode(errors="surrogateescape")
            _pass_on(_LINE.sub("", text))
    return next(filter(None, (_telling(found[2]) for found in _LINE.finditer(text))), "")


def _telling(message: str) -> str:
    """The first line of a message without places in ONNX Runtime's source and without folders."""
    lines = message.strip().splitlines()
    return as_message(_FOLDERS.sub("", _PLACE.sub("", lines[0]))) if lines else ""


@contextlib.contextmanager
def _standard_error_in(target: int) -> Iterator[None]:
    """Within the block, file descriptor 2 is a duplicate of `target`; without a standard error nothing changes."""
    try:
        kept = os.dup(STDERR)
    except OSError:
        yield
        return
    try:
        _flush()
        os.dup2(target, STDERR)
        yield
    finally:
        _flush()
        os.dup2(kept, STDERR)
        os.close(kept)


def _flush() -> None:
    with contextlib.suppress(Exception):  # closed, or replaced by something odd
        sys.stderr.flush()


def _pass_on(text: str) -> None:
    with contextlib.suppress(OSError), open(STDERR, "wb", closefd=False) as stream:
        stream.write(text.encode(errors="surrogateescape"))
