"""One training job: images, trainer and run folder brought together, with progress for people."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import click
import torch

from byol.begun import Begun, contents, difference, identity, keeping_threads
from byol.checkpoint import Checkpoint
from byol.config import TrainConfig
from byol.console import at_work, note, note_skipped, progress, progress_bar, warnings_as_notes
from byol.data import ImageTensor, Intake, StreamedImages, canvas_side, open_images
from byol.distributed import LostProcess, World, joined
from byol.events import EventLog, require_tensorboard
from byol.fit import Interrupted, Unheard, fit
from byol.images import ImageSource
from byol.locations import Location
from byol.model import BYOL, require_fit
from byol.monitor import KNNMonitor
from byol.run import RunFolder, versions
from byol.run_format import TRAIN
from byol.signals import hang_up_is_ignored
from byol.sources import open_source
from byol.streams import reader_is_gone
from byol.text import printable
from byol.train import Trainer


def run_training(
    config: TrainConfig,
    data: Location,
    out: Path,
    val_data: Location | None = None,
    resume: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train from images to a finished run folder, with progress on stderr.

    Raises `ValueError` or `OSError` for whatever a user can cause, `click.ClickException` when stopped by a signal or
    out of memory.
    """
    try:
        run = RunFolder(out)
        with keeping_threads(), joined() as world, run.alone() if world.first else nullcontext():
            _train_in(world, config, data, run, val_data, resume, tensorboard)
    except (Interrupted, LostProcess) as error:
        raise click.ClickException(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise click.ClickException(
            f"out of memory: {config.batch_size // config.accumulate} images of {config.image_size} px at a time; use "
            f"--accumulate {2 * config.accumulate}, --recompute, or a smaller --batch-size; checkpoints are intact"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Also a CPU's: torch has no type of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _train_in(
    world: World,
    config: TrainConfig,
    data: Location,
    run: RunFolder,
    val_data: Location | None,
    resume: bool,
    tensorboard: bool,
) -> None:
    continuing = resume and run.exists()
    if world.first and not continuing:
        run.require_new()
    if tensorboard:
        require_tensorboard()
    source = open_source(data)
    checkpoint, begun = (run.checkpoint(), run.begun()) if continuing else (None, Begun())
    facts = identity(data, source)
    if begun.intake:  # before anything is decoded
        _require_same_images(run, checkpoint, {**facts, "images": begun.intake.count(source)})
    if not config.canvas_size:
        side = run.config().canvas_size if continuing else _canvas_side(world, source, config)
        config = config.replace(canvas_size=side)
    images, intake = _opened(world, source, config.canvas_size, begun.intake)
    facts["images"] = len(images)
    if continuing:
        _require_same_images(run, checkpoint, facts)
    if checkpoint:  # before memory is taken for what a small file may claim
        with torch.device("meta"):
            require_fit(BYOL(config).state_dict(), checkpoint.model(), str(run.last))
    trainer = Trainer(config, images, world, begun.computed)
    validation = open_source(val_data) if val_data else None
    with warnings_as_notes():
        knn = world.first_then_others(lambda: _monitor(world, config, source, validation)) if validation else None
    start = _continue(trainer, run, checkpoint) if continuing else 0
    world.require_same(start, "number of finished steps")
    if world.first:
        note_skipped(images.skipped)
        if not continuing:
            skipped = [vars(item) for item in images.skipped]
            run.create(config, {"data": facts, "skipped": skipped, **contents(intake, trainer.computed)})
        note(_headline(trainer, images, start))
        if changed := begun.changes(trainer.computed, versions(config.arch)):
            note(changed)
    listed = len(images.skipped)
    events = EventLog(run.path, start) if tensorboard and world.first else None
    with trainer, Reporter(trainer.plan.total, start, events, shown=world.first) as reporter:
        fit(trainer, run, facts, start, knn, reporter.report, reporter.warn, reporter.advance)
    if world.first:
        note_skipped(images.skipped[listed:])  # what a stream met on its way


def _canvas_side(world: World, source: ImageSource, config: TrainConfig) -> int:
    """What the first process finds, in all of them."""
    side = 0
    if world.first:
        with progress(f"look at {source.name}", None):
            side = canvas_side(source, config.image_size)
    return int(world.tell(str(side)))


def _opened(
    world: World, source: ImageSource, side: int, begun: Intake | None
) -> tuple[ImageTensor | StreamedImages, Intake]:
    """The images in every process, and how they are got: the first one decides, decodes them, and the others follow."""
    images: ImageTensor | StreamedImages | None = None
    with warnings_as_notes():
        if world.first:
            with progress(f"decode {source.name}", len(source)) as advance:
                images = open_images(source, side, advance, begun=begun)
            begun = begun or Intake.of(images)
        told = Intake.from_text(world.tell(begun.to_text() if begun else ""))
        if images is None:
            images = open_images(source, side, begun=told)
    world.wait()  # one that finds nothing in the cache decodes for itself
    return images, told


def _monitor(world: World, config: TrainConfig, source: ImageSource, validation: ImageSource) -> KNNMonitor:
    with progress(f"decode {validation.name} for kNN", None) if world.first else nullcontext() as advance:
        return KNNMonitor(config, source, validation, advance)


def _headline(trainer: Trainer, images: ImageTensor | StreamedImages, start: int) -> str:
    """What is trained, on what, and how."""
    config, world = trainer.config, trainer.world
    norms = f", batch-norm {'over all' if trainer.sync_norm else 'in each'}" if world.size > 1 else ""
    stem = "" if config.timm_name else f" ({config.resolved_stem} stem)"
    return (
        f"{config.arch}{stem} at {config.image_size} px on {len(images)} images, "
        f"{trainer.plan.total} steps of {config.batch_size}, {trainer.device.type}, {trainer.precision}"
        + {"all": ", compiled", "augmentation": ", augmentation compiled", "none": ""}[trainer.compiled]
        + (", streamed" if isinstance(images, StreamedImages) else "")
        + (f", {world.size} processes{norms}" if world.size > 1 else "")
        + (f"; continuing after step {start}" if start else "")
    )


def _require_same_images(run: RunFolder, checkpoint: Checkpoint | None, facts: dict[str, Any]) -> None:
    """Raise `ValueError` when a run began with other images; nothing is changed before this is known."""
    stored = checkpoint.data if checkpoint else run.content(TRAIN).get("data", facts)
    if found := difference(stored, facts):
        raise ValueError(
            f"{printable(run.path)} was trained on {found}; give the images that it began with, or start a new run "
            "with another --out"
        )


def _continue(trainer: Trainer, run: RunFolder, checkpoint: Checkpoint | None) -> int:
    """Load the newest checkpoint; the number of finished steps, behind which metrics are dropped."""
    if checkpoint:
        trainer.load(checkpoint)
    start = checkpoint.step if checkpoint else 0
    if trainer.world.first:
        run.remove_leftovers()
        run.drop_metrics_after(start)
    return start


class Reporter:
    """Metrics for people: a bar on a terminal, else a line each time; and TensorBoard's files where wanted.

    Between two lines that are far apart, it is said which step is done.
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
        """So many steps are done."""
        self.done = done

    def report(self, record: dict[str, Any]) -> None:
        """Show one line of metrics. Raises `Unheard` when nobody can read it, and the run is not to outlive that."""
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
