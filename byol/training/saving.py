"""Checkpoints of a run, written by a thread while training goes on: one at a time, each from a copy of its step."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byol.training.checkpoint import Checkpoint, finite, save_checkpoint
from byol.training.run_folder import RunFolder
from byol.training.trainer import Trainer

APART = 60.0  # seconds, at least, between the checkpoints after each epoch that nobody asked for
DIVERGED = "lower --lr, lengthen the warm-up, or try --precision fp32; the last checkpoint is intact"


class Saver:
    """Saves a run when it is due; the other processes wait until the first has a copy of its state.

    An error of the thread that writes, such as a full disk, is raised by the next call, or at the end of the block,
    which waits for it. So at most one copy is held, and no file has two writers.
    """

    def __init__(self, trainer: Trainer, run: RunFolder, data: dict[str, Any]):
        self._trainer, self._run, self._data = trainer, run, data
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._saved = -math.inf

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self._finish()

    def keep_untrained(self) -> None:
        """Save the networks before the first step, where checkpoints are to be kept."""
        if self._trainer.world.first and self._trainer.config.keep_every:
            save_checkpoint(self._run.numbered(0), self._trainer.state(0, self._data))

    def after(self, done: int, must: bool) -> None:
        """Save after `done` steps if a checkpoint is due or `must` be; then return once it is on the disk.

        Raises `ValueError` when a weight is not finite, and `OSError`; of an earlier checkpoint, too.
        """
        if self._writing is not None and self._writing.done():
            self._finish()
        config, per_epoch = self._trainer.config, self._trainer.plan.steps_per_epoch
        kept = bool(config.keep_every) and done % (config.keep_every * per_epoch) == 0
        if must or kept or self._due(done):
            self.save(done, kept, must)

    def _due(self, done: int) -> bool:
        every = self._trainer.config.checkpoint_every
        if every:
            return done % every == 0
        if done % self._trainer.plan.steps_per_epoch:
            return False
        world = self._trainer.world
        return world.any(world.first and time.monotonic() - self._saved >= APART)  # the first one's clock decides

    def save(self, done: int, kept: bool, wait: bool) -> None:
        """Save after `done` steps; `kept`: also under a name of its own. `wait` until it is on the disk."""
        if self._trainer.world.first:
            self._finish()
            # The one that is kept comes first: killed in between, the run takes this step again and keeps the same.
            places = [self._run.numbered(done)] * kept + [self._run.last]
            copy = _copied(self._trainer.state(done, self._data))
            self._writing = self._thread.submit(_write, copy, places)
            self._saved = time.monotonic()
            if wait:
                self._finish()
        self._trainer.world.wait()

    def _finish(self) -> None:
        """Wait for what is being written, and raise its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _copied(checkpoint: Checkpoint) -> tuple[Checkpoint, torch.cuda.Event | None]:
    """A copy in the host's memory and, from a GPU, what tells when it is complete: nothing waits for it here."""
    copies = {name: _on_host(value.detach()) for name, value in checkpoint.tensors.items()}
    ready = None
    if any(value.device.type == "cuda" for value in checkpoint.tensors.values()):
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
    return replace(checkpoint, tensors=copies), ready


def _on_host(value: Tensor) -> Tensor:
    """Pinned from a GPU, which copies it between two steps: milliseconds of its time, and none of its memory."""
    if value.device.type == "cpu":
        return value.clone()
    return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)


def _write(copy: tuple[Checkpoint, torch.cuda.Event | None], places: list[Path]) -> None:
    checkpoint, ready = copy
    if ready is not None:
        ready.synchronize()
    if not finite(checkpoint.tensors):
        raise ValueError(f"weights are not finite after step {checkpoint.step}; {DIVERGED}")
    for place in places:
        save_checkpoint(place, checkpoint)
