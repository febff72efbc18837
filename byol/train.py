"""The training loop: build, step, measure, log, save.

All random numbers are functions of (seed, step), so a run continued from a checkpoint repeats what an uninterrupted
one does. Legend: B batch, S view pixels, M canvas pixels.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from byol.augment import draw, render
from byol.checkpoint import Checkpoint, finite, save_checkpoint
from byol.config import TrainConfig, ViewConfig
from byol.data import ImageTensor, batch_rows, seeded
from byol.device import resolve_compile, resolve_device, resolve_precision
from byol.model import BYOL, Observation, load_strict
from byol.monitor import KNNMonitor, collapse_statistics, collapse_warning
from byol.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
    tau_at,
)
from byol.run import RunFolder, save_views


class Interrupted(Exception):
    """The run was stopped by a signal, after its state was saved."""


@dataclass(frozen=True)
class Plan:
    """How long a run is, in optimizer steps."""

    steps_per_epoch: int
    total: int
    warmup: int

    @classmethod
    def of(cls, config: TrainConfig, images: int) -> Plan:
        """The plan for so many images. Raises `ValueError` when they do not fill one batch."""
        if images < config.batch_size:
            raise ValueError(
                f"batch_size {config.batch_size} is more than the {images} images; use --batch-size {images} or fewer"
            )
        per_epoch = images // config.batch_size
        total = config.max_steps or config.epochs * per_epoch
        return cls(per_epoch, total, min(round(config.warmup_epochs * per_epoch), total // 2))


class Trainer:
    """Networks, optimizer and images of one run, and the optimizer step that ties them together."""

    def __init__(self, config: TrainConfig, images: ImageTensor):
        self.config = config
        self.plan = Plan.of(config, len(images))
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.compiled = resolve_compile(config.compile, self.device)
        torch.manual_seed(config.seed)
        self.model = BYOL(config)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.model = self.model.to(self.device).train()
        self.parameters = self.model.trained_parameters()
        self.optimizer = build_optimizer(config, self.parameters)
        self.pixels, self.aspect = images.pixels.to(self.device), images.aspect.to(self.device)
        self.mean = torch.tensor(config.mean, device=self.device)[:, None, None]  # (3, 1, 1)
        self.std = torch.tensor(config.std, device=self.device)[:, None, None]
        self._forward: Callable[..., Any] = torch.compile(self.model) if self.compiled else self.model
        self._render: Callable[..., Tensor] = torch.compile(render) if self.compiled else render

    def step(self, step: int) -> tuple[Tensor, Observation]:
        """Optimizer step number `step` (from 0): gradients of all micro-batches, update, then the target follows.

        Returns the mean loss, a scalar tensor on the device, and the last micro-batch's observation.
        """
        config, plan = self.config, self.plan
        rows = batch_rows(config.seed, step, len(self.pixels), config.batch_size)
        generator = seeded(self.device, config.seed, "views", step)
        torch.manual_seed(generator.initial_seed())  # for whatever an encoder draws itself
        set_learning_rate(self.optimizer, learning_rate(step, plan.total, plan.warmup, config.peak_lr))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for micro in rows.chunk(config.accumulate):
            view1, view2 = self.views(micro, generator)
            with self._autocast():
                loss, seen = self._forward(view1, view2)
            (loss / config.accumulate).backward()
            total += loss.detach() / config.accumulate
        self.optimizer.step()
        self.model.update_target(self.tau(step))
        return total, seen

    def tau(self, step: int) -> float:
        """The target's momentum at a step."""
        return tau_at(step, self.plan.total, self.config.tau, self.config.tau_cosine)

    @torch.no_grad()
    def views(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two normalised random views (B, 3, S, S) of the images in these rows."""
        rows = rows.to(self.device)
        images = self.pixels[rows].permute(0, 3, 1, 2)  # (B, 3, M, M)
        aspect, size = self.aspect[rows], self.config.image_size

        def view(config: ViewConfig) -> Tensor:
            return self._normalise(self._render(config, images, draw(config, aspect, generator), size))

        return view(self.config.view1), view(self.config.view2)

    def first_views(self, most: int = 16) -> list[Tensor]:
        """The two views of the first images of the first step, (B, 3, S, S) in 0..1, to look at."""
        rows = batch_rows(self.config.seed, 0, len(self.pixels), self.config.batch_size)[:most]
        views = self.views(rows, seeded(self.device, self.config.seed, "views", 0))
        return [view * self.std + self.mean for view in views]

    def _normalise(self, view: Tensor) -> Tensor:
        view = (view - self.mean) / self.std
        return view.contiguous(memory_format=torch.channels_last) if self.config.channels_last else view

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def features(self, pixels: Tensor, batch: int = 256) -> Tensor:
        """Features (N, D) float32 of uint8 images (N, S, S, 3) by the online encoder in eval mode."""
        encoder: nn.Module = self.model.online.encoder.eval()
        try:
            with self._autocast():
                parts = [
                    encoder(self._normalise(part.to(self.device).permute(0, 3, 1, 2).float() / 255)).float()
                    for part in torch.split(pixels, batch)
                ]
        finally:
            encoder.train()
        return torch.cat(parts)

    def state(self, step: int, data: dict[str, Any]) -> Checkpoint:
        """The checkpoint after `step` finished steps."""
        tensors = dict(self.model.state_dict())
        tensors |= {
            f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer, self.parameters).items()
        }
        return Checkpoint(self.config, step, step // self.plan.steps_per_epoch, data, tensors)

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint. Raises `ValueError` when it does not fit."""
        load_strict(self.model, checkpoint.model(), "the checkpoint")
        load_optimizer_tensors(self.optimizer, self.parameters, checkpoint.optimizer())


def fit(
    trainer: Trainer,
    run: RunFolder,
    data: dict[str, Any],
    start: int = 0,
    knn: KNNMonitor | None = None,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> None:
    """Train from step `start` to the end of the plan, writing metrics and checkpoints into the run folder.

    `report` gets each line of metrics, `warn` plain sentences. Raises `ValueError` when the loss is not finite, and
    `Interrupted` after SIGINT or SIGTERM, once the current step is saved.
    """
    config, plan = trainer.config, trainer.plan
    if start == 0:
        save_views(run.views, *trainer.first_views())
        if config.keep_every:
            save_checkpoint(run.numbered(0), trainer.state(0, data))
    save_every = config.checkpoint_every or plan.steps_per_epoch
    meter = Meter(config.batch_size)
    warned = False
    with StopSignals() as stop:
        for step in range(start, plan.total):
            loss, seen = trainer.step(step)
            meter.add(loss)
            done, last = step + 1, step + 1 == plan.total
            epoch_end = done % plan.steps_per_epoch == 0 or last
            if done % config.log_every == 0 or epoch_end:
                record = _record(trainer, step, meter, seen)
                if knn is not None and epoch_end and _knn_due(config, done // plan.steps_per_epoch, last):
                    record["knn_top1"] = round(knn.measure(trainer.features), 5)
                run.log(record)
                report(record)
                warning = collapse_warning(record) if done > plan.warmup // 2 else None
                if warning and not warned:
                    warn(f"step {done}: {warning}")
                warned = warning is not None
                meter = Meter(config.batch_size)
            kept = bool(config.keep_every) and done % (config.keep_every * plan.steps_per_epoch) == 0
            if done % save_every == 0 or kept or last or stop.requested:
                meter.pause()
                checkpoint = trainer.state(done, data)
                if not finite(checkpoint.tensors):
                    raise ValueError(f"weights are not finite after step {done}; {_DIVERGED}")
                save_checkpoint(run.last, checkpoint)
                if kept:
                    save_checkpoint(run.numbered(done), checkpoint)
                meter.resume()
            if stop.requested and not last:
                raise Interrupted(f"stopped by {stop.requested} after step {done}; continue with --resume")


_DIVERGED = "lower --lr, lengthen the warm-up, or try --precision fp32; the last checkpoint is intact"


def _knn_due(config: TrainConfig, epoch: int, last: bool) -> bool:
    return bool(config.knn_every) and (last or epoch % config.knn_every == 0)


def _record(trainer: Trainer, step: int, meter: Meter, seen: Observation) -> dict[str, Any]:
    """One line of metrics after optimizer step `step`. Raises `ValueError` for a loss that is not finite."""
    loss, rate = meter.result()
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} at step {step + 1}; {_DIVERGED}")
    plan, config = trainer.plan, trainer.config
    statistics = {key: round(value, 5) for key, value in collapse_statistics(seen).items()}
    return {
        "step": step + 1,
        "epoch": round((step + 1) / plan.steps_per_epoch, 4),
        "loss": round(loss, 6),
        "lr": learning_rate(step, plan.total, plan.warmup, config.peak_lr),
        "tau": trainer.tau(step),
        "images_per_second": round(rate, 1),
        **statistics,
    }


class Meter:
    """Mean loss and images per second since it was made; reads the device only when asked for the result."""

    def __init__(self, batch_size: int):
        self.batch_size, self.steps, self.seconds = batch_size, 0, 0.0
        self.loss: Tensor | float = 0.0
        self.resume()

    def add(self, loss: Tensor) -> None:
        """Count one step."""
        self.loss = self.loss + loss
        self.steps += 1

    def pause(self) -> None:
        """Stop the clock (while saving, say)."""
        self.seconds += time.perf_counter() - self.started

    def resume(self) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def result(self) -> tuple[float, float]:
        """Mean loss, images per second."""
        loss = float(self.loss) / self.steps  # waits for the device, so the clock is read after it
        self.pause()
        self.resume()
        return loss, self.steps * self.batch_size / self.seconds


class StopSignals:
    """While active, SIGINT and SIGTERM only set `requested`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = ""

    def __enter__(self) -> StopSignals:
        self._old = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the host program handles its signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
