"""One training job: images, trainer and run folder brought together, with progress for people."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from byol.console import note, note_skipped, progress, warnings_as_notes
from byol.encoders.build import Pretrained, build_encoder, require_fit
from byol.images.location import Location, location_of
from byol.images.open import open_source
from byol.images.source import ImageSource
from byol.run import TRAIN, VAL_DATA
from byol.signals import Ended
from byol.text import printable
from byol.training.begun import Begun, contents, described, difference, identity, keeping_threads
from byol.training.checkpoint import Checkpoint
from byol.training.config import TrainConfig
from byol.training.data.decoded import canvas_side, open_images
from byol.training.data.intake import ImageTensor, Intake, StreamedImages
from byol.training.exportable import require_exportable
from byol.training.loop import fit
from byol.training.model import BYOL
from byol.training.monitor import KNNMonitor, KNNSets
from byol.training.parallel.processes import World, joined
from byol.training.progress import EventLog, Reporter, require_tensorboard
from byol.training.run_folder import RunFolder, versions
from byol.training.trainer import Setup, Trainer


def train(
    images: Location,
    out: str | Path,
    config: TrainConfig | None = None,
    val_data: Location | None = None,
    resume: bool = False,
) -> Path:
    """Train an encoder from the images at `images` (a folder, `.npz`, shards, a URL, `cifar10`) into the folder `out`.

    `config`: the settings, by default the paper's at 224 px; `val_data`: labelled images for kNN accuracy during
    training; `resume`: continue the run in `out`, or start one if there is none. Progress goes to stderr. Returns the
    run folder, which `byol.export.export_bundle` turns into a bundle.

    Raises `ValueError` or `OSError` for whatever a user can cause, and `byol.signals.Ended` when stopped by a signal or
    out of memory.
    """
    run_training(config or TrainConfig(), location_of(str(images)), Path(out), val_data, resume)
    return Path(out)


def run_training(
    config: TrainConfig,
    data: Location,
    out: Path,
    val_data: Location | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    export_check: bool = False,
) -> None:
    """Train from images to a finished run folder, with progress on stderr.

    `export_check`: refuse an encoder that cannot be exported before a new run begins.

    Raises `ValueError` or `OSError` for whatever a user can cause, `Ended` when stopped by a signal or out of memory.
    """
    try:
        run = RunFolder(out)
        with keeping_threads(), joined() as world, run.alone() if world.first else nullcontext():
            _train_in(world, config, data, run, val_data, resume, tensorboard, export_check)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise Ended(
            f"out of memory: {config.batch_size // config.accumulate} images of {config.image_size} px at a time; use "
            f"--accumulate {2 * config.accumulate}, --recompute, or a smaller --batch-size; checkpoints are intact"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """On a CPU as well, where torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _train_in(
    world: World,
    config: TrainConfig,
    data: Location,
    run: RunFolder,
    val_data: Location | None,
    resume: bool,
    tensorboard: bool,
    export_check: bool,
) -> None:
    continuing = resume and run.exists()
    if world.first and not continuing:
        run.require_new()
    if tensorboard:
        require_tensorboard()
    source, validation = open_source(data), open_source(val_data) if val_data else None
    sets = KNNSets.choose(config, source, validation) if validation else None
    facts = identity(data, source)
    compared = {**identity(val_data, validation), "images": len(validation)} if val_data and validation else None
    checkpoint, begun = (run.checkpoint(), run.begun()) if continuing else (None, Begun())
    if continuing:
        if begun.intake:
            _require_same_images(run, checkpoint, {**facts, "images": begun.intake.count(source)})
        _require_same_validation(run, compared, world)
    _require_possible(config, source, world, checkpoint, run, begun)
    if not continuing and export_check and world.first:
        _require_exportable(config)
    if not config.canvas_size:
        side = run.config().canvas_size if continuing else _canvas_side(world, source, config)
        config = config.replace(canvas_size=side)
    images, intake = _opened(world, source, config.canvas_size, begun.intake)
    facts["images"] = len(images)  # that can be read
    if continuing:
        _require_same_images(run, checkpoint, facts)
    trainer = Trainer(config, images, world, begun.computed)
    with warnings_as_notes():
        knn = world.first_then_others(lambda: _monitor(world, config, sets)) if sets else None
    start = _continue(trainer, run, checkpoint) if continuing else 0
    world.require_same(start, "number of finished steps")
    if world.first:
        note_skipped(images.skipped)
        if not continuing:
            run.create(config, {"data": facts, **contents(intake, trainer.computed)}, images.skipped)
        note(_headline(trainer, images, start))
        if changed := begun.changes(trainer.computed, versions(config.arch)):
            note(changed)
        if knn and sets and compared:
            run.remember(VAL_DATA, compared)
            told = set(images.skipped)
            note_skipped([item for item in knn.skipped if item not in told], of="the images for kNN")
            note(f"kNN: {sets.described}")
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
    """The images in every process, and how they are read: the first process decides and decodes, the others follow."""
    images: ImageTensor | StreamedImages | None = None
    with warnings_as_notes():
        if world.first:
            with progress(f"decode {source.name}", len(source)) as advance:
                images = open_images(source, side, advance, begun=begun)
            begun = begun or Intake.of(images)
        told = Intake.from_text(world.tell(begun.to_text() if begun else ""))
        if images is None:
            images = open_images(source, side, begun=told)
    world.wait()  # a process that finds nothing in the cache decodes for itself
    return images, told


def _monitor(world: World, config: TrainConfig, sets: KNNSets) -> KNNMonitor:
    with progress(f"decode {sets.queries.name} for kNN", None) if world.first else nullcontext() as advance:
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


def _require_same_validation(run: RunFolder, found: dict[str, Any] | None, world: World) -> None:
    """Raise `ValueError` when a run's kNN was measured on other images; warn when there are none now."""
    stored = run.content(TRAIN).get(VAL_DATA)
    if not isinstance(stored, dict):
        return
    if found is None:
        if world.first:
            note(f"warning: no kNN from here on; to continue it, give --val-data ({described(stored)})")
    elif changed := difference(stored, found):
        raise ValueError(f"{printable(run.path)} measures kNN on {changed}; give the validation images it began with")


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
    """Raise `ValueError` when a run began with other images, before anything is changed."""
    stored = checkpoint.data if checkpoint else run.content(TRAIN).get("data", facts)
    if found := difference(stored, facts):
        raise ValueError(
            f"{printable(run.path)} was trained on {found}; give the images it began with, or start a new run "
            "with another --out"
        )


def _continue(trainer: Trainer, run: RunFolder, checkpoint: Checkpoint | None) -> int:
    """Load the newest checkpoint and drop later metrics; the number of finished steps."""
    if checkpoint:
        trainer.load(checkpoint)
    start = checkpoint.step if checkpoint else 0
    if trainer.world.first:
        run.remove_leftovers()
        if ignored := run.drop_metrics_after(start).ignored:
            note(ignored)
    return start
