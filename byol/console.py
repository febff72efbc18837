"""What commands print: results on stdout, everything else on stderr. Light to import; torch-free."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import select
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.machine import NO_DRIVER
from byol.text import as_message, printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from byol.images.picture.pages import Several
    from byol.images.source import Skipped

LISTED = 20
SECONDS_A_LINE = 60.0
STDOUT, STDERR = 1, 2
READ_ALREADY = "BYOL_STANDARD_INPUT"  # names the file in which a launcher put standard input for its processes

_said = 0.0  # when the last note was written
_read: tuple[object, bytes] = (None, b"")  # standard input and its content: commands check a source, and open it later
_reader_gone = False
_at_work: list[Callable[[], str]] = []  # each describes the progress of some work; the innermost last


def show_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(values, sort_keys=False, allow_nan=False))


def show_line(line: str) -> None:
    """One line on stdout."""
    click.echo(as_message(line))


def show_table(rows: Sequence[tuple[str, object]]) -> None:
    """Two aligned columns on stdout."""
    names = [as_message(name) for name, _ in rows]
    width = max(map(len, names))
    for name, (_, value) in zip(names, rows, strict=True):
        show_line(f"{name:<{width}}  {value}")


def note(message: str) -> None:
    """One line on stderr, if there is one. A note that cannot be written never stops the work."""
    global _said
    _said = time.monotonic()
    with contextlib.suppress(OSError, ValueError):  # ValueError: the host program has closed it
        click.echo(as_message(message), err=True)


def note_device(asked: str, device: str, reason: str) -> None:
    """Say which device computes and why, where that is not the one asked for.

    With `auto`, unless there is no choice: `byol doctor` says that.
    """
    if reason != NO_DRIVER if asked == "auto" else asked != device:
        note(f"device: {device} ({reason})")


def note_skipped(skipped: Sequence[Skipped], listed_in: str = "", of: str = "") -> None:
    """List the first 20 skipped images and count the rest; `of` describes the whole."""
    if not skipped:
        return
    note(f"skipped {len(skipped)}{of and f' of {of}'}{f' (listed in {listed_in})' if listed_in else ''}:")
    for item in skipped[:LISTED]:
        note(f"  {printable(item.path)}: {item.reason}")
    if len(skipped) > LISTED:
        note(f"  and {len(skipped) - LISTED} more")


def note_several(several: Several, images: int) -> None:
    """Say how many of so many images are the first picture of a file that holds more."""
    if several.count:
        hold = "holds" if several.count == 1 else "hold"
        names = ", ".join(map(printable, several.first)) + (", ..." if several.count > len(several.first) else "")
        note(
            f"{several.count:,} of {images:,} images {hold} several pictures (a stack or an animation), of which the "
            f"first is read: {names}"
        )


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Our own warnings (k larger than the bank, no convergence) as one line each on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        note(f"warning: {warning.message}")


@contextlib.contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr if that is a terminal, else a line a minute. Yields advance(count), which any thread may call."""
    if sys.stderr is None or not sys.stderr.isatty():
        lines = _Lines(title, total)
        with at_work(lines.text):
            yield lines.advance
        return
    with at_work(str), progress_bar(title, total, transient=True) as bar:
        yield lambda count: bar.advance(bar.task_ids[0], count)


class _Lines:
    """The progress of some work, printed once a minute."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._of = title, f" of {total:,}" if total else ""
        self._done, self._last, self._lock = 0, time.monotonic(), threading.Lock()

    def text(self) -> str:
        """The line."""
        return f"{self._title}: {self._done:,}{self._of}"

    def advance(self, count: int) -> None:
        """Add `count` to what is done."""
        with self._lock:
            now = time.monotonic()
            self._done += count
            due = now - self._last >= SECONDS_A_LINE
            self._last = now if due else self._last
        if due:
            note(self.text())


@contextlib.contextmanager
def at_work(text: Callable[[], str]) -> Iterator[None]:
    """Within the block, `text()` describes the progress; empty means that somebody else reports it."""
    _at_work.append(text)
    try:
        yield
    finally:
        _at_work.remove(text)


@contextlib.contextmanager
def never_silent() -> Iterator[None]:
    """Within the block, a minute without a note ends with one about the work at hand: slow is not stuck."""
    ended, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(max(0.01, SECONDS_A_LINE - (time.monotonic() - max(_said, began)))):
            if time.monotonic() - max(_said, began) >= SECONDS_A_LINE:
                _tell(time.monotonic() - began)

    watcher = threading.Thread(target=watch, name="never-silent", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()


def _tell(seconds: float) -> None:
    """Describe the work at hand; an empty description counts as written."""
    global _said
    inner = _at_work[-1:]  # at once: another thread may end it
    text = inner[0]() if inner else "working"
    if text:
        note(f"{text} ({seconds / 60:.0f} min since the start)")
    else:
        _said = time.monotonic()


def progress_bar(title: str, total: int | None, start: int = 0, transient: bool = False) -> Progress:
    """A bar on stderr with one task, not yet started."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    times = TimeElapsedColumn(), TimeRemainingColumn()  # the first one moves even while nothing is done
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *times)
    bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=transient)
    bar.add_task(as_message(title), total=total, completed=start)
    return bar


def training_bar(total: int, start: int) -> Progress:
    """A bar of training steps on stderr, not yet started; the field `left` says how long it takes. Fits 80 columns."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    bar = Progress(*columns, console=Console(stderr=True, highlight=False), expand=True)
    bar.add_task("train", total=total, completed=start, left="")
    return bar


def prepare() -> None:
    """Make the standard streams of this process safe; for commands, before they open a file.

    If one is closed, the next file opened gets its number, and what libraries print would end up in that file.
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
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that its encoding lacks is written out: the work is done
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr else "utf-8"
        raw = io.BufferedWriter(_Unfailing(STDERR, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)


class _Unfailing(io.FileIO):
    """Accepts everything; what cannot be written is lost."""

    def write(self, data: Any) -> int:
        """Write what can be written; returns the number of bytes given."""
        global _reader_gone
        try:
            written = super().write(data)
        except OSError as error:
            _reader_gone = _reader_gone or error.errno == errno.EPIPE
            written = None
        return memoryview(data).nbytes if written is None else written  # None: the pipe is full; do not wait


def has_reader(descriptor: int = STDOUT) -> bool:
    """Whether what is written, on standard output if nothing else, may still be read. False where no one can tell."""
    if not hasattr(select, "poll"):  # Windows
        return False
    watched = select.poll()
    watched.register(descriptor, 0)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))


def standard_input() -> bytes:
    """All of standard input, even if this process or its launcher has already read it."""
    global _read
    kept = os.environ.get(READ_ALREADY)
    if kept:
        return Path(kept).read_bytes()
    if _read[0] is not sys.stdin:
        _read = sys.stdin, sys.stdin.buffer.read()
    return _read[1]


def reader_is_gone() -> bool:
    """Whether standard error is a pipe that nobody reads any longer."""
    return _reader_gone
