"""The pixels that all threads of a process may decode at once: memory is bounded however many threads there are.

Torch-free. The limit is `BYOL_DECODE_PIXELS` (see `byol.limits`).
"""

from __future__ import annotations

import os
import threading
from collections import deque

from byol.limits import limit


class PixelBudget:
    """Taken within `with` blocks. First come, first served: small pictures cannot starve a large one.

    A picture larger than the whole budget waits until it is alone.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._taken = 0
        self._mine = threading.local()

    def __enter__(self) -> None:
        """What this thread takes within the block stays taken until it ends, however it ends; blocks may be nested."""
        self._mine.depth = getattr(self._mine, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        self._mine.depth -= 1
        if not self._mine.depth:
            self._give_back()

    def take(self, pixels: int) -> None:
        """Wait until so many pixels are free; only within a block. A thread that holds some never waits for more.

        It might wait for itself, or for a thread that waits for it.
        """
        held, most = getattr(self._mine, "pixels", 0), limit("BYOL_DECODE_PIXELS")
        with self._changed:
            if not held and (self._line or not self._has_room(pixels, most)):
                self._wait_for(pixels, most)
            self._taken += pixels
        self._mine.pixels = held + pixels

    def _has_room(self, pixels: int, most: int) -> bool:
        return not self._taken or self._taken + pixels <= most

    def _wait_for(self, pixels: int, most: int) -> None:
        ticket = object()
        self._line.append(ticket)
        try:
            self._changed.wait_for(lambda: self._line[0] is ticket and self._has_room(pixels, most))
        finally:
            self._line.remove(ticket)
            self._changed.notify_all()  # the next in line may have room as well

    def _give_back(self) -> None:
        pixels, self._mine.pixels = getattr(self._mine, "pixels", 0), 0
        if pixels:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


PIXELS = PixelBudget()


def _begin_anew() -> None:
    PIXELS.__init__()  # type: ignore[misc]  # modules hold this very object


if hasattr(os, "register_at_fork"):  # the threads that would give pixels back are not in the child
    os.register_at_fork(after_in_child=_begin_anew)
