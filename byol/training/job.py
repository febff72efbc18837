"""One training job: images, trainer and run folder brought together, with progress for people."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from byol.console import at_work, note, note_several, note_skipped, progress, warnings_as_notes
from byol.encoders.build import build_encoder, require_fit
from byol.encoders.pretrained import Pretrained
from byol.images.location import Location
from byol.images.open import open_source
from byol.images.source import ImageSource
from byol.run import INPUTS, NETWORKS, VAL_DATA
from byol.strict_json import read_object, require_legal
from byol.text import duration, quoted
from byol.training.begun import Begun, contents, identity, keeping_threads
from byol.training.checkpoint import Checkpoint
from byol.training.config import TrainConfig
from byol.training.data.intake import ImageTensor, StreamedImages
from byol.training.data.shared import canvas_side_of, opened, require_shared
from byol.training.device import enough_memory
from byol.training.exportable import require_exportable
from byol.training.loop import fit
from byol.training.model import BYOL
from byol.training.parallel.processes import World, joined
from byol.training.recipes.forecast import planned
from byol.training.recipes.initial import WHOLE, Initial, read_initial
from byol.training.recipes.settings import Job, job_of, settings_for, warn_of_splits
from byol.training.resumed import (
    identified,
    initial_again,
    reopened,
    require_same_images,
    require_same_time,
    require_same_validation,
    settings_again,
    validation_of,
)
from byol.training.run_folder import RunFolder, versions
from byol.training.setup import Plan, Setup, in_less_memory
from byol.training.trainer import Trainer
from byol.training.watch.knn import KNNMonitor, KNNSets
from byol.training.watch.progress import EventLog, Reporter, require_tensorboard


def train(
    images: Location,
    out: str | Path,
    config: TrainConfig | None = None,
    val_data: Location | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    seconds: float | None = None,
) -> Path:
    """Train an encoder from the images at `images` (a folder, `.npz`, shards, a URL, `cifar10`) into the folder `out`.

    `config`: the settings, by default a recipe that fits the images and the machine; `val_data`: labelled images for
    kNN accuracy during training; `resume`: continue the run in `out`, with the settings it began with, or start one if
    there is none; `init`: a run, checkpoint or bundle whose weights it starts from; `seconds`: the time in which it
    should end. Progress goes to stderr. Returns the run folder, which `byol.export.export_bundle` turns into a bundle.

    Raises `ValueError` or `OSError` for whatever a user can cause, and `byol.signals.Ended` when stopped by a signal or
    out of memory.
    """
    legal = "a byol.TrainConfig: byol.TrainConfig(epochs=50), or a preset of byol.training.recipes.presets.PRESETS"
    require_legal(config is None or isinstance(config, TrainConfig), "config", config, legal)
    job = job_of(images, out, val_data, resume, init, seconds)
    run_training(job, config)
    return job.out


def run_training(
    job: Job, config: TrainConfig | None, change: Callable[[TrainConfig], TrainConfig] = lambda config: config
) -> None:
    """Train from images to a finished run folder, with progress on stderr.

    `config`: the settings, by default the recipe for these images; a resumed run keeps its own, and refuses others.
    `change` is applied to the settings of a new run.

    Raises `ValueError` or `OSError` for whatever a user can cause, `Ended` when stopped by a signal or out of memory.
    """
    began, run, given = time.monotonic(), RunFolder(job.out), job
    with keeping_threads(), joined() as world, run.alone() if world.first else nullcontext():
        continuing = job.resume and run.exists()
        stored = settings_again(run, config, job.init) if continuing else None
        if continuing:
            require_same_time(job, run)
            job = job.continued(run.inputs())
        elif world.first:
            run.require_new()
        if job.tensorboard:
            require_tensorboard()
        source = reopened(job, given) if continuing else open_source(job.images)
        if stored:
            config, checkpoint = stored, run.checkpoint()
            initial = initial_again(job, run, config) if config.init and checkpoint is None else None
        else:
            checkpoint, initial = None, read_initial(job.init) if job.init else None
            config = _chosen(world, job, source, config, change, initial)
        with enough_memory(partial(_remedy, config, world, run)):
            start = _Start(world, given, job, run, continuing, checkpoint, initial, began)
            _train(start, config, source)


@dataclass(frozen=True)
class _Start:
    """Where a training starts: `continuing` a run, from `checkpoint` if it has one, from `initial` weights or anew.

    `given`: what was asked for; `job`: with what the run remembers.
    """

    world: World
    given: Job
    job: Job
    run: RunFolder
    continuing: bool
    checkpoint: Checkpoint | None
    initial: Initial | None
    began: float

    def networks(self, loaded: str) -> dict[str, Any]:
        """What `config.json` keeps of the weights it began with, so that it begins with the same again."""
        return {NETWORKS: self.initial.networks() if loaded == WHOLE else None} if self.initial else {}

    def seconds_left(self) -> float:
        """Of the time that the run was given."""
        return (self.job.seconds or 0.0) - (time.monotonic() - self.began)


def _chosen(
    world: World,
    job: Job,
    source: ImageSource,
    config: TrainConfig | None,
    change: Callable[[TrainConfig], TrainConfig],
    initial: Initial | None,
) -> TrainConfig:
    """The settings of a new run, which the first process chooses."""
    chosen = json.dumps(settings_for(job, source, config, change, initial).to_dict()) if world.first else ""
    return TrainConfig.from_dict(read_object(world.tell(chosen)))


def _remedy(config: TrainConfig, world: World, run: RunFolder) -> str:
    """What to do about a lack of memory. A run keeps its settings, so it is another one that takes less."""
    less = in_less_memory(config, world.size)
    if not run.exists():
        return less
    saved = f" and --init {quoted(run.path)}, to start from its weights" if os.path.lexists(run.last) else ""
    return f"{less}, in a new run with another --out{saved}; checkpoints are intact"


def _train(start: _Start, config: TrainConfig, source: ImageSource) -> None:
    """Check, decode, plan, then train to the end."""
    world, job, run, continuing, checkpoint = start.world, start.job, start.run, start.continuing, start.checkpoint
    validation = validation_of(job, start.given)
    sets = KNNSets.choose(config, source, validation) if validation and config.knn_every else None
    facts = identified(job, source)
    compared = (
        {**identity(job.val_data, validation), "images": len(validation)} if job.val_data and validation else None
    )
    require_shared(world, "training images", {**facts, "images": len(source)})
    require_shared(world, "validation images", compared)
    begun = run.begun() if continuing else Begun()
    if continuing:
        if begun.intake:
            require_same_images(run, checkpoint, {**facts, "images": begun.intake.count(source)}, source)
        require_same_validation(run, compared, world)
    _require_possible(config, source, world, checkpoint, run, begun)
    if not continuing and job.export_check and world.first:
        _require_exportable(config)
    if not config.canvas_size:
        side = run.config().canvas_size if continuing else canvas_side_of(world, source, config.image_size)
        config = config.replace(canvas_size=side)
    images, intake = opened(world, source, config.canvas_size, begun.intake)
    facts["images"] = len(images)  # that can be read
    if continuing:
        require_same_images(run, checkpoint, facts, source)
    with warnings_as_notes():
        knn = world.first_then_others(lambda: _monitor(world, config, sets)) if sets else None
    plan: dict[str, Any] = {}
    if job.seconds and not continuing:
        config, plan = _planned(start, config, images, knn)
    trainer = Trainer(config, images, world, begun.computed)
    loaded = start.initial.load_into(trainer.model) if start.initial else ""
    done = _continue(trainer, run, checkpoint) if continuing else 0
    world.require_same(done, "number of finished steps")
    if world.first:
        _note_images(images)
        warn_of_splits(source)
        if not continuing:
            begin = {"data": facts, **plan, **start.networks(loaded), **contents(intake, trainer.computed)}
            run.create(config, begin, intake.recorded(images.skipped))
        run.remember(INPUTS, {**run.inputs(), **job.inputs()})
        note(_headline(trainer, images, done))
        if start.initial:
            note(f"starting from {start.initial.name}: {loaded}")
        if changed := begun.changes(trainer.computed, versions(config.arch)):
            note(changed)
        if knn and sets and compared:
            run.remember(VAL_DATA, compared)
            told = set(images.skipped)
            note_skipped([item for item in knn.skipped if item not in told], of="the images for kNN")
            note(f"kNN: {sets.described}; chance is {100 / len(knn.classes):.3g} %")
    listed = len(images.skipped)
    events = EventLog(run.path, done) if job.tensorboard and world.first else None
    with trainer, Reporter(trainer.plan.total, done, events, world.first, run.untrained()) as reporter:
        fit(trainer, run, facts, done, knn, reporter)
    if world.first:
        _note_images(images, listed)  # what a stream met on its way


def _note_images(images: ImageTensor | StreamedImages, told: int | None = None) -> None:
    """Say what was left out, and what was read in part. `told`: how many were said to be, at a run's end."""
    note_skipped(images.skipped[told or 0 :])
    if isinstance(images, StreamedImages) == (told is not None):
        note_several(images.several, len(images))


def _planned(
    start: _Start, config: TrainConfig, images: ImageTensor | StreamedImages, knn: KNNMonitor | None
) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of a run that ends in time, and what `config.json` keeps of the plan."""
    if start.world.first:
        note("timing a few steps")
    asked, named = config.knn_every, start.job.named
    with at_work(lambda: "measuring"):
        config, pace = planned(config, images, start.world, knn, start.seconds_left, named=named)
    plan = Plan.of(config, len(images))
    if start.world.first:
        if config.knn_every != asked and "knn_every" in named:
            note(f"warning: kNN every {config.knn_every} epochs: more often, it would leave no time for training")
        note(
            f"{config.batch_size / pace.step(config):.0f} images/s: {plan.total:,} steps, "
            f"{plan.total / plan.steps_per_epoch:.1f} epochs, fit into {duration(start.seconds_left())}"
        )
    return config, {"plan": {"seconds": start.job.seconds, **asdict(pace)}}


def _monitor(world: World, config: TrainConfig, sets: KNNSets) -> KNNMonitor:
    with progress(f"decode {sets.name} for kNN", None) if world.first else nullcontext() as advance:
        return KNNMonitor(config, sets, advance)


def _require_possible(
    config: TrainConfig, source: ImageSource, world: World, checkpoint: Checkpoint | None, run: RunFolder, begun: Begun
) -> None:
    """Raise `ValueError` for what cannot work, before decoding images or taking the memory that a file claims."""
    Setup.of(config, len(source), world, begun.computed)
    with torch.device("meta"):
        shapes = BYOL(config).state_dict()
    if checkpoint:
        require_fit(shapes, checkpoint.model(), str(run.last))


def _require_exportable(config: TrainConfig) -> None:
    stem, size = config.resolved_stem, config.image_size
    encoder = build_encoder(config.arch, stem, size)
    require_exportable(Pretrained(encoder, config.arch, stem, size, config.mean, config.std))


def _headline(trainer: Trainer, images: ImageTensor | StreamedImages, done: int) -> str:
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
        + (f"; continuing after step {done}" if done else "")
    )


def _continue(trainer: Trainer, run: RunFolder, checkpoint: Checkpoint | None) -> int:
    """Load the newest checkpoint and drop later metrics; the number of finished steps."""
    if checkpoint:
        trainer.load(checkpoint)
    done = checkpoint.step if checkpoint else 0
    if trainer.world.first:
        run.remove_leftovers()
        if ignored := run.drop_metrics_after(done or -1).ignored:  # kNN before the first step is measured again
            note(ignored)
    return done
