"""Progress of a run for people: a bar or lines on stderr, and TensorBoard's event files."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from byol.console import SECONDS_A_LINE, at_work, note, reader_is_gone, training_bar
from byol.run import standard_error
from byol.signals import hang_up_is_ignored
from byol.text import as_message, duration, missing
from byol.training.stop import Unheard

FOLDER = "tensorboard"
FIRST_LINES = 10  # shown however close together
LONG = 600.0  # seconds of training that are worth a word


def require_tensorboard() -> None:
    """Raises `ValueError` when tensorboard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(missing("tensorboard", "tensorboard", "--tensorboard")) from error


class EventLog:
    """Writes each line of metrics as scalars into `RUN/tensorboard/`.

    TensorBoard no longer shows steps after `start`, which a resumed run repeats. Raises `ValueError` when tensorboard
    is not installed.
    """

    def __init__(self, run: Path, start: int):
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / FOLDER), purge_step=start + 1 if start else None)

    def log(self, record: dict[str, Any]) -> None:
        """Add one line of metrics."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


class Reporter:
    """A run for people: a bar on a terminal, else lines; TensorBoard's files on request.

    `untrained`: kNN top-1 before the first step, when a resumed run measured it. Above the bar stays a line an epoch.
    Without a bar the first lines are all shown; then those a minute apart, those with kNN and the last one.
    """

    def __init__(
        self,
        total: int,
        start: int,
        events: EventLog | None = None,
        shown: bool = True,
        untrained: float | None = None,
    ):
        self.total, self.done, self.events, self.shown, self.untrained = total, start, events, shown, untrained
        self.knn, self.top1 = "", math.nan
        self.clock = Clock(total, start)
        self.bar = training_bar(total, start) if shown and sys.stderr.isatty() else None
        self._start, self._lines, self._told, self._warned_of_length = start, 0, -math.inf, False
        self._open = ExitStack()

    def __enter__(self) -> Reporter:
        self._open.enter_context(at_work(self._at_work))
        if self.bar:
            self._open.enter_context(self.bar)
        if self.events:
            self._open.callback(self.events.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def advance(self, done: int) -> None:
        """Record the number of finished steps."""
        self.done = done
        self.clock.advance(done)
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=done, left=self.clock.text())
        self._say_how_long()

    def report(self, record: dict[str, Any]) -> None:
        """Show one line of metrics. Raises `Unheard` when nobody can read it and hang-ups are not ignored."""
        if self.events:
            self.events.log(record)
        measured = "knn_top1" in record
        if measured:
            self.knn, self.top1 = self._knn(record), record["knn_top1"]
        if "loss" in record:
            self._report_step(record, measured)
        else:
            self.say(f"before training{self.knn}")
        if reader_is_gone() and not hang_up_is_ignored():
            raise Unheard("a closed standard error")

    def _report_step(self, record: dict[str, Any], measured: bool) -> None:
        text = f"loss {record['loss']:.4f}"
        if self.bar:
            brief = f"  kNN {100 * self.top1:.1f} %" if self.knn else ""
            self.bar.update(self.bar.task_ids[0], description=text + brief)
        end_of_epoch = float(record["epoch"]).is_integer() or record["step"] == self.total
        due = measured or record["step"] == self.total or self._lines < FIRST_LINES
        due = due or time.monotonic() - self._told >= SECONDS_A_LINE
        if end_of_epoch if self.bar else due:
            self._lines, self._told = self._lines + 1, time.monotonic()
            line = f"epoch {record['epoch']:.1f}  {text}  {record['wall_images_per_second']:.0f} images/s"
            line += self.knn if measured else ""
            if not self.bar:  # which shows these
                left = self.clock.text()
                line = f"step {record['step']}/{self.total}  {line}{left and f'  {left}'}"
            self.say(line)

    def _knn(self, record: dict[str, Any]) -> str:
        top1, queries = record["knn_top1"], record.get("knn_queries")
        if record["step"] == 0:
            self.untrained = top1
        error = f" +- {100 * standard_error(top1, queries):.1f}" if queries else ""
        untrained = f" (untrained {100 * self.untrained:.1f})" if self.untrained is not None and record["step"] else ""
        return f"  kNN {100 * top1:.1f}{error} %{untrained}"

    def _say_how_long(self) -> None:
        """Once, early: how long the run takes, if that is long."""
        left = self.clock.left()
        if self._warned_of_length or left is None or not self.shown:
            return
        if self.done - self._start >= 10 or self.clock.passed() >= SECONDS_A_LINE:
            self._warned_of_length = True
            if left > LONG:
                ends = time.strftime("%A %H:%M", time.localtime(time.time() + left))
                self.say(f"{duration(left)} to go: ends about {ends} (--time fits a run into a given time)")

    def _at_work(self) -> str:
        """For whoever asks after a minute without a line; a bar speaks for itself."""
        left = self.clock.text()
        return "" if self.bar else f"step {self.done}/{self.total}{left and f', {left}'}"

    def say(self, message: str) -> None:
        """Show a sentence. Any thread may call this."""
        if self.bar:
            self.bar.console.print(as_message(message), markup=False, highlight=False)
        elif self.shown:
            note(message)

    def warn(self, message: str) -> None:
        """Show a warning."""
        self.say(f"warning: {message}")


class Clock:
    """The time left of a run, from the steps it has done; the first, which compiles, counts only while it is alone."""

    def __init__(self, total: int, start: int, now: Callable[[], float] | None = None):
        self.total, self.start, self._now = total, start, now or time.monotonic
        self._began, self._first, self._done = self._now(), 0.0, start

    def advance(self, done: int) -> None:
        """Record the number of finished steps."""
        if self._done == self.start:
            self._first = self._now()
        self._done = done

    def passed(self) -> float:
        """Seconds since the beginning."""
        return self._now() - self._began

    def left(self) -> float | None:
        """Seconds; None before the first step."""
        counted = self._done - self.start
        if counted < 1:
            return None
        each = self.passed() if counted == 1 else (self._now() - self._first) / (counted - 1)
        return each * (self.total - self._done)

    def text(self) -> str:
        """Such as "3 h 20 min left"; empty when unknown or nothing is left."""
        left = self.left()
        return f"{duration(left)} left" if left else ""
