"""`byol train`: options to a `TrainConfig`, progress to stderr, results to the run folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.config import ARCHITECTURES, OPTIMIZERS, STEMS, TrainConfig, ViewConfig, setting_type
from byol.console import note, note_skipped, progress, progress_bar
from byol.presets import PRESETS
from byol.sources import open_source

if TYPE_CHECKING:
    from byol.data import ImageTensor, StreamedImages
    from byol.distributed import World
    from byol.events import EventLog
    from byol.run import RunFolder
    from byol.train import Trainer


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Settings to start from; the options below override.")
@click.option("--val-data", type=click.Path(path_type=Path), help="Labelled images for kNN accuracy while training.")
@click.option("--epochs", type=int, help="Passes over the images.")
@click.option("--batch-size", type=int, help="Images per optimizer step.")
@click.option("--arch", type=click.Choice(ARCHITECTURES), help="Encoder.")
@click.option("--stem", type=click.Choice(STEMS), help="First layers; auto: cifar up to 64 px, imagenet above.")
@click.option("--image-size", type=int, help="Side of a view and of the exported input, in pixels.")
@click.option("--max-steps", type=int, help="End after so many optimizer steps, schedules included.")
@click.option("--accumulate", type=int, help="Split each batch into so many micro-batches.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="Optimizer.")
@click.option("--lr", type=float, help="Base learning rate per 256 images.")
@click.option("--tau", type=float, help="Target network's momentum at the start.")
@click.option("--seed", type=int, help="Seed of weights, order and augmentation.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="auto: bf16 where it is fast.")
@click.option("--recompute", is_flag=True, default=None, help="Less memory for more time: activations are not kept.")
@click.option("--compile/--no-compile", default=None, help="torch.compile; unset: on CUDA only.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting of docs/recipe.md, as --set knn_every=5 or --set view1.crop_area=[0.2,1].",
)
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard event files (needs the `tensorboard` extra).")
@click.option("--nproc", type=click.IntRange(1), default=1, show_default=True, help="Processes, one per GPU.")
@click.option("--resume", is_flag=True, help="Continue the run in --out; start it when there is none.")
def train(
    data: Path, out: Path, val_data: Path | None, tensorboard: bool, nproc: int, resume: bool, **options: Any
) -> None:
    """Learn an encoder from the unlabelled images in DATA: a folder, an .npz file, shards (.tar, .parquet) or cifar10.

    Without --preset: ResNet-50 at 224 px with the paper's 100-epoch settings, batch 256.
    """
    from byol.distributed import is_launched, launch
    from byol.run import RunFolder

    run = RunFolder(out)
    try:
        config = chosen_config(run.config() if resume and run.exists() else None, options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if nproc > 1 and not is_launched():
        if not launch(nproc, sys.argv[1:]):
            raise click.exceptions.Exit(1)
        return
    run_training(config, data, out, val_data, resume, tensorboard)
    if os.environ.get("RANK", "0") == "0":
        note(f"Done. Next: byol export {out} --out BUNDLE")


def chosen_config(stored: TrainConfig | None, options: dict[str, Any]) -> TrainConfig:
    """The configuration of a command: the stored run's or the preset's, overridden by the options given.

    Raises `ValueError` for an illegal value, or one that a resumed run was not started with.
    """
    preset = options.pop("preset")
    base = stored or (PRESETS[preset]() if preset else TrainConfig())
    given = {name: value for name, value in options.items() if value is not None and name != "settings"}
    for text in options["settings"]:
        _apply_setting(base, given, text)
    config = base.replace(**given)
    if stored is not None:
        changed = [name for name in given if getattr(config, name) != getattr(stored, name) and name != "device"]
        if preset and preset != stored.preset:
            changed.append("preset")
        if changed:
            raise ValueError(
                f"a resumed run keeps its settings, but these differ: {', '.join(sorted(changed))}; "
                "leave the options out, or start a new run with another --out"
            )
    return config


def _apply_setting(base: TrainConfig, given: dict[str, Any], text: str) -> None:
    """Add one `--set` to the given settings; `view1.` and `view2.` reach into the views."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set {text!r} has no `=`; write NAME=VALUE")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value  # a plain word
    parsed = tuple(parsed) if isinstance(parsed, list) else parsed
    outer, dot, inner = name.partition(".")
    if not dot:
        kind = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}.get(setting_type(name), (object,))
        if not isinstance(parsed, kind) or (isinstance(parsed, bool) and bool not in kind and object not in kind):
            raise ValueError(f"--set {name} needs a value of type {setting_type(name)}, found {value!r}")
        given[name] = parsed
        return
    view = given.get(outer, getattr(base, outer, None))
    if not isinstance(view, ViewConfig) or not hasattr(view, inner):
        raise ValueError(f"--set {name}: no such setting")
    given[outer] = ViewConfig(**{**vars(view), inner: parsed})


def run_training(
    config: TrainConfig,
    data: Path,
    out: Path,
    val_data: Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train from images to a finished run folder, with progress on stderr.

    Raises `ValueError` or `OSError` for whatever a user can cause, `click.ClickException` when stopped by a signal or
    out of memory.
    """
    import torch

    from byol.distributed import LostProcess, joined
    from byol.fit import Interrupted
    from byol.run import RunFolder

    try:
        with joined() as world:
            _train_in(world, config, data, RunFolder(out), val_data, resume, tensorboard)
    except (Interrupted, LostProcess) as error:
        raise click.ClickException(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise click.ClickException(
            f"out of memory: {config.batch_size // config.accumulate} images of {config.image_size} px at a time; use "
            f"--accumulate {2 * config.accumulate} (the same result in less memory), --recompute, or a smaller "
            "--batch-size; the last checkpoint is intact"
        ) from error


def _train_in(
    world: World,
    config: TrainConfig,
    data: Path,
    run: RunFolder,
    val_data: Path | None,
    resume: bool,
    tensorboard: bool,
) -> None:
    from byol.data import canvas_side, open_images, source_digest
    from byol.events import EventLog
    from byol.fit import fit
    from byol.monitor import KNNMonitor
    from byol.train import Trainer

    source = open_source(data)
    continuing = resume and run.exists()
    if not config.canvas_size:
        side = run.config().canvas_size if continuing else canvas_side(source, config.image_size)
        config = config.replace(canvas_size=side)
    with progress(f"decode {source.name}", len(source)) as advance:
        images = world.first_then_others(lambda: open_images(source, config.canvas_size, advance))
    facts = {"name": data.resolve().name, "images": len(images), "digest": source_digest(source)}
    trainer = Trainer(config, images, world)
    validation = open_source(val_data) if val_data else None
    knn = world.first_then_others(lambda: KNNMonitor(config, source, validation)) if validation else None
    start = _continue(trainer, run, facts) if continuing else 0
    world.require_same(start, "number of finished steps")
    if world.first:
        note_skipped(images.skipped)
        if not continuing:
            run.create(config, {"data": facts, "skipped": [vars(item) for item in images.skipped]})
        note(_headline(trainer, images, start))
    listed = len(images.skipped)
    events = EventLog(run.path, start) if tensorboard and world.first else None
    with trainer, Reporter(trainer.plan.total, start, events, shown=world.first) as reporter:
        fit(trainer, run, facts, start, knn, reporter.report, reporter.warn)
    if world.first:
        note_skipped(images.skipped[listed:])  # what a stream met on its way


def _headline(trainer: Trainer, images: ImageTensor | StreamedImages, start: int) -> str:
    """What is trained, on what, and how."""
    from byol.data import StreamedImages

    config, world = trainer.config, trainer.world
    norms = f", batch-norm {'over all' if trainer.sync_norm else 'in each'}" if world.size > 1 else ""
    return (
        f"{config.arch} ({config.resolved_stem} stem) at {config.image_size} px on {len(images)} images, "
        f"{trainer.plan.total} steps of {config.batch_size}, {trainer.device.type}, {trainer.precision}"
        + (", compiled" if trainer.compiled else "")
        + (", streamed" if isinstance(images, StreamedImages) else "")
        + (f", {world.size} processes{norms}" if world.size > 1 else "")
        + (f"; continuing after step {start}" if start else "")
    )


def _continue(trainer: Trainer, run: RunFolder, facts: dict[str, Any]) -> int:
    """Load the newest checkpoint; the number of finished steps. Raises `ValueError` when the images are others."""
    checkpoint = run.checkpoint()
    if trainer.world.first:
        run.drop_metrics_after(checkpoint.step if checkpoint else 0)
    if checkpoint is None:
        return 0
    if checkpoint.data != facts:
        raise ValueError(f"{run.path} was trained on {checkpoint.data}, but the images now are {facts}")
    trainer.load(checkpoint)
    return checkpoint.step


class Reporter:
    """Metrics for people: a bar on a terminal, else a line each time; and TensorBoard's files where wanted."""

    def __init__(self, total: int, start: int, events: EventLog | None = None, shown: bool = True):
        self.total, self.events = total, events
        self.knn = ""
        self.bar = progress_bar("train", total, start) if shown and sys.stderr.isatty() else None

    def __enter__(self) -> Reporter:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        if self.events:
            self.events.close()

    def report(self, record: dict[str, Any]) -> None:
        """Show one line of metrics."""
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

    def warn(self, message: str) -> None:
        """Show a warning."""
        if self.bar:
            self.bar.console.print(f"warning: {message}", markup=False)
        else:
            note(f"warning: {message}")
