"""Signals that ask a process to end: it cleans up on the way out. Torch-free."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

HANG_UP = None if sys.platform == "win32" else signal.SIGHUP


class Stopped(BaseException):
    """SIGTERM or SIGHUP arrived. Raised in the main thread; nothing takes it for a failure of the work."""


class Ended(Exception):
    """The work ended early, through no fault of the program. The message says why, and what is kept."""


@contextmanager
def handled(numbers: Sequence[int | None], handler: Callable[[int, Any], None] | signal.Handlers) -> Iterator[None]:
    """Handle these signals, except those that the parent process ignores, as `nohup` does.

    Outside the main thread nothing changes: the host program handles its signals there. Nor for a signal that the host
    of an embedded Python handles in C (R, Julia): nobody could give it back.
    """
    old: dict[int, Any] = {}
    try:
        for number in numbers:
            if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                old[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread
        pass
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


@contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped`; a second SIGTERM ends at once, further hang-ups are ignored."""
    with handled((signal.SIGTERM, HANG_UP), _stop):
        yield


def _stop(number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if HANG_UP is not None:
        signal.signal(HANG_UP, signal.SIG_IGN)
    raise Stopped(f"stopped by {signal.Signals(number).name}")


def hang_up_is_ignored() -> bool:
    """Whether the process should outlive its terminal, as under `nohup`."""
    return HANG_UP is not None and signal.getsignal(HANG_UP) is signal.SIG_IGN
