"""The loop of a run: step, measure, log, save, until the end of the plan or a signal. Legend: B batch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from byol.files.regular import SourceUnavailable
from byol.training.config import TrainConfig
from byol.training.device import peak_memory
from byol.training.model import Observation
from byol.training.optim import learning_rate
from byol.training.run_folder import RunFolder
from byol.training.saving import DIVERGED, Saver
from byol.training.stop import Interrupted, StopSignals, Unheard
from byol.training.trainer import GivenUp, Trainer
from byol.training.watch.collapse import collapse_statistics, collapse_warning
from byol.training.watch.knn import KNNMonitor
from byol.training.watch.progress import Reporter
from byol.training.watch.views_picture import save_views


def fit(
    trainer: Trainer,
    run: RunFolder,
    data: dict[str, Any],
    start: int = 0,
    knn: KNNMonitor | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Train from step `start` to the end of the plan, writing metrics and checkpoints into the run folder.

    Every process of a job runs this; the first writes and reports while the others wait. Raises `ValueError` when the
    loss is not finite, `SourceUnavailable` when the images are gone and `Interrupted` after SIGINT, SIGTERM or SIGHUP,
    the latter two after saving the last step.
    """
    config, plan, world = trainer.config, trainer.plan, trainer.world
    reporter = reporter or Reporter(plan.total, start, shown=False)
    saver, warned = Saver(trainer, run, data), False
    _begin(trainer, run, saver, start, knn, reporter)
    with StopSignals(reporter.say, patient=world.size > 1) as stop, saver:
        give_up = stop.asked if world.size == 1 else _never  # several would have to agree on it
        meter = Meter(trainer)
        for step in range(start, plan.total):
            try:
                losses, seen = trainer.step(step, give_up)
            except GivenUp:
                saver.save(step, kept=False, wait=True)
                raise _interrupted(stop.requested, step) from None
            meter.add(losses)
            done, last = step + 1, step + 1 == plan.total
            reporter.advance(done)
            epoch_end = done % plan.steps_per_epoch == 0 or last
            if done % config.log_every == 0 or epoch_end:
                record = _record(trainer, step, meter, seen)
                if knn is not None and epoch_end and _knn_due(config, done // plan.steps_per_epoch, last):
                    record |= knn.measure(trainer.features)
                if world.first:
                    run.log(record)
                    try:
                        reporter.report(record)
                    except Unheard as error:
                        stop.request(str(error))
                    warning = collapse_warning(record, config.batch_size) if done > plan.warmup // 2 else None
                    if warning and not warned:
                        reporter.warn(f"step {done}: {warning}")
                    warned = warning is not None
                meter = Meter(trainer, meter.ended)
            lost = None if last else _lost_before(trainer, done, stop)
            if lost:
                stop.request("missing images")
            stopping = world.any(stop.asked())  # waits for the process with the slowest batch
            with meter.paused():
                saver.after(done, must=last or stopping)
            if lost:
                raise SourceUnavailable(f"{lost}, with --resume: step {done} is saved") from lost
            if stopping and not last:
                raise _interrupted(stop.requested, done)


def _never() -> bool:
    return False


def _interrupted(by: str, done: int) -> Interrupted:
    return Interrupted(f"stopped by {by or 'a signal'} after step {done}; continue with --resume")


def _begin(
    trainer: Trainer, run: RunFolder, saver: Saver, start: int, knn: KNNMonitor | None, reporter: Reporter
) -> None:
    """Write what comes before the first step, kNN of the untrained encoder included; wait until all can begin."""
    if start == 0:
        if trainer.world.first:
            save_views(run.views, trainer.first_views())
            saver.keep_untrained()
        trainer.world.wait()
        if knn is not None:
            record = {"step": 0, "epoch": 0.0, **knn.measure(trainer.features)}
            if trainer.world.first:
                run.log(record)
                try:
                    reporter.report(record)
                except Unheard as error:
                    raise _interrupted(str(error), 0) from None
    if start < trainer.plan.total:
        trainer.feed.wait(start)
    trainer.world.wait()


def _lost_before(trainer: Trainer, step: int, stop: StopSignals) -> SourceUnavailable | None:
    """Wait for the batch of a step, but no longer than until a signal asks to stop: a silent server may take an hour.

    Returns the error if there is none, while finished steps can still be saved.
    """
    try:
        trainer.feed.wait(step, stop.asked)
    except SourceUnavailable as error:
        return error
    return None


def _knn_due(config: TrainConfig, epoch: int, last: bool) -> bool:
    return bool(config.knn_every) and (last or epoch % config.knn_every == 0)


def _record(trainer: Trainer, step: int, meter: Meter, seen: Observation) -> dict[str, Any]:
    """One line of metrics after optimizer step `step`. Raises `ValueError` for a loss that is not finite."""
    measured = meter.result()
    if not math.isfinite(measured["loss"]):
        raise ValueError(f"the loss is {measured['loss']} at step {step + 1}; {DIVERGED}")
    everywhere = Observation(*(trainer.world.gather(tensor) for tensor in seen))
    plan, config = trainer.plan, trainer.config
    return {
        "step": step + 1,
        "epoch": round((step + 1) / plan.steps_per_epoch, 4),
        "loss": round(measured.pop("loss"), 6),
        **{f"loss_{name}": round(measured.pop(f"loss_{name}"), 6) for name in meter.kinds},
        "lr": learning_rate(step, plan.total, plan.warmup, config.peak_lr),
        "tau": trainer.tau(step),
        **measured,
        **{key: round(value, 5) for key, value in collapse_statistics(everywhere).items()},
    }


class Meter:
    """Mean loss and speed since its creation; reads from the device only for the result.

    `since`: when the meter before it ended, from where the clock on the wall counts.
    """

    def __init__(self, trainer: Trainer, since: float | None = None):
        self.trainer, self.steps, self.pauses = trainer, 0, 0.0
        self.losses: Tensor | float = 0.0  # (K,), see `Trainer.step`
        kinds = [kind.name for kind in trainer.kinds]
        self.kinds = ["global", *kinds] if kinds else []
        self.waited = trainer.feed.waited
        self.started = self.ended = time.perf_counter()
        self.since = self.started if since is None else since

    def add(self, losses: Tensor) -> None:
        """Count one step, by its losses (K,)."""
        self.losses = self.losses + losses
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave this time out, such as the time for saving."""
        started = time.perf_counter()
        yield
        self.pauses += time.perf_counter() - started

    def result(self) -> dict[str, float]:
        """`loss` and speeds of all processes, `data_wait_percent` and `peak_memory_gb` of this one.

        `loss` is the sum of those of the kinds of view, beside it (`loss_global`, ...) where there are several.
        `images_per_second` is that of the steps alone, `wall_images_per_second` with kNN and saving since `since`.
        """
        trainer = self.trainer
        means = trainer.world.mean(torch.as_tensor(self.losses)).tolist()  # the clock waits for the device
        losses = [mean / self.steps for mean in means]
        self.ended = time.perf_counter()
        seconds, images = self.ended - self.started - self.pauses, self.steps * trainer.config.batch_size
        return {
            "loss": sum(losses),
            **{f"loss_{name}": loss for name, loss in zip(self.kinds, losses, strict=False)},
            "images_per_second": round(images / seconds, 1),
            "wall_images_per_second": round(images / (self.ended - self.since), 1),
            "data_wait_percent": round(100 * (trainer.feed.waited - self.waited) / seconds, 2),
            "peak_memory_gb": round(peak_memory(trainer.device) / 1e9, 3),
        }
