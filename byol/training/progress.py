"""Progress of a run for people: a bar or lines on stderr, and TensorBoard's event files."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from byol.console import at_work, note, progress_bar, reader_is_gone
from byol.signals import hang_up_is_ignored
from byol.text import missing
from byol.training.loop import Unheard

FOLDER = "tensorboard"


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
    """Metrics for people: a bar on a terminal, else lines; TensorBoard's files on request.

    When two lines are far apart, the steps done are shown in between.
    """

    def __init__(self, total: int, start: int, events: EventLog | None = None, shown: bool = True):
        self.total, self.done, self.events = total, start, events
        self.knn = ""
        self.bar = progress_bar("train", total, start) if shown and sys.stderr.isatty() else None

        self._open = ExitStack()

    def __enter__(self) -> Reporter:
        self._open.enter_context(at_work(lambda: "" if self.bar else f"step {self.done}/{self.total}"))
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

    def report(self, record: dict[str, Any]) -> None:
        """Show one line of metrics. Raises `Unheard` when nobody can read it and hang-ups are not ignored."""
        if self.events:
            self.events.log(record)
        if "knn_top1" in record:
            self.knn = f"  kNN {100 * record['knn_top1']:.1f} %"
        text = (
            f"epoch {record['epoch']:.1f}  loss {record['loss']:.4f}  tau {record['tau']:.4f}  "
            f"{record['images_per_second']:.0f} images/s{self.knn}"
        )
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=record["step"], description=text)
        else:
            note(f"step {record['step']}/{self.total}  {text}")
        if reader_is_gone() and not hang_up_is_ignored():
            raise Unheard("a closed standard error")

    def warn(self, message: str) -> None:
        """Show a warning."""
        if self.bar:
            self.bar.console.print(f"warning: {message}", markup=False)
        else:
            note(f"warning: {message}")
