"""What commands print: results on stdout, everything else on stderr. Light to import; torch-free."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from byol.text import as_message, printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from byol.images import Skipped

LISTED = 20
SECONDS_A_LINE = 60.0


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
    """One line on stderr, where there is one: no work ends for a note that cannot be written."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the host program has closed it
        click.echo(as_message(message), err=True)


def note_device(asked: str, device: str, reason: str) -> None:
    """With `auto`, say what was taken and why."""
    if asked == "auto":
        note(f"device: {device} ({reason})")


def note_skipped(skipped: Sequence[Skipped], listed_in: str = "") -> None:
    """List what was left out; after the first 20, count."""
    if not skipped:
        return
    note(f"skipped {len(skipped)}{f' (listed in {listed_in})' if listed_in else ''}:")
    for item in skipped[:LISTED]:
        note(f"  {printable(item.path)}: {item.reason}")
    if len(skipped) > LISTED:
        note(f"  and {len(skipped) - LISTED} more")


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
    """A bar on stderr when it is a terminal, else a line a minute. Gives advance(count)."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _a_line_a_minute(title, total)
        return
    with progress_bar(title, total, transient=True) as bar:
        yield lambda count: bar.advance(bar.task_ids[0], count)


def _a_line_a_minute(title: str, total: int | None) -> Callable[[int], None]:
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= SECONDS_A_LINE:
            last = time.monotonic()
            note(f"{title}: {done:,}{f' of {total:,}' if total else ''}")

    return advance


def progress_bar(title: str, total: int | None, start: int = 0, transient: bool = False) -> Progress:
    """A bar on stderr with one task, not yet started."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=transient)
    bar.add_task(as_message(title), total=total, completed=start)
    return bar
