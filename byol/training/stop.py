"""Signals during training: the step at hand is finished, or given up between its micro-batches, and saved."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

from byol.signals import HANG_UP, Ended, handled

GRACE = 3.0  # seconds that the main thread has to unwind after a second signal


class Interrupted(Ended):
    """The run was stopped by a signal, after its state was saved."""


class Unheard(Exception):
    """Nobody can read the reports any more: end as after a signal."""


class StopSignals:
    """While active, SIGINT, SIGTERM and SIGHUP set `requested` and `say` tells so; a second one stops at once.

    A thread listens: Python runs its handlers between two calls of torch, each of which may take half a minute.

    Not when `patient`: a launcher passes on signals that its processes already got from the terminal. A second hang-up
    never interrupts: it comes from both terminal and shell, and after SIGTERM.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None, patient: bool = False) -> None:
        self.requested, self.patient, self._say = "", patient, say
        self._open, self._over = ExitStack(), threading.Event()

    def __enter__(self) -> StopSignals:
        self._open.enter_context(handled((signal.SIGINT, signal.SIGTERM, HANG_UP), self._note))
        heard, hearing = socket.socketpair()
        hearing.setblocking(False)
        try:
            before = signal.set_wakeup_fd(hearing.fileno(), warn_on_full_buffer=False)
        except ValueError:  # not in the main thread
            heard.close()
            hearing.close()
            return self
        listener = threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True)
        listener.start()
        self._open.callback(listener.join)
        self._open.callback(hearing.close)
        self._open.callback(signal.set_wakeup_fd, before)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._open.close()

    def asked(self) -> bool:
        """Whether the run should end."""
        return bool(self.requested)

    def request(self, reason: str) -> None:
        """Ask the run to end after its current step; the first reason counts."""
        self.requested = self.requested or reason

    def _note(self, number: int, _frame: object) -> None:
        """Python's own handler, in the main thread."""
        if self.requested and not self.patient and number != HANG_UP:
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)

    def _listen(self, heard: socket.socket) -> None:
        """Answer signals until the other end is closed."""
        answered = 0
        with heard:
            while numbers := heard.recv(16):
                for number in numbers:
                    if number not in (signal.SIGINT, signal.SIGTERM, HANG_UP):
                        continue
                    answered += 1
                    if answered == 1:
                        more = "" if self.patient else "; a second signal stops at once"
                        self._say(f"{signal.Signals(number).name}: finishing this step, then saving{more}")
                    elif number != HANG_UP and not self.patient:
                        threading.Thread(target=self._end, name="end", daemon=True).start()

    def _end(self) -> None:
        """End the process if the main thread is still at work after `GRACE`. Files are written whole or not at all."""
        if self._over.wait(GRACE):
            return
        self._say("stopped at once; the last checkpoint is intact, continue with --resume")
        os._exit(1)
