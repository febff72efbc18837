"""`byol train`: options to a `TrainConfig`, progress to stderr, results to the run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.config import ARCHITECTURES, OPTIMIZERS, STEMS, TIMM, TrainConfig, ViewConfig, setting_type
from byol.console import note, note_skipped, progress, progress_bar
from byol.images import open_source
from byol.presets import PRESETS

if TYPE_CHECKING:
    from byol.run import RunFolder
    from byol.train import Trainer


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Settings to start from; the options below override.")
@click.option("--val-data", type=click.Path(path_type=Path), help="Labelled images for kNN accuracy while training.")
@click.option("--epochs", type=int, help="Passes over the images.")
@click.option("--batch-size", type=int, help="Images per optimizer step.")
@click.option(
    "--arch",
    metavar=f"[{'|'.join(ARCHITECTURES)}|{TIMM}NAME]",
    help="Encoder; timm:NAME is any model of timm's (needs the `timm` extra).",
)
@click.option(
    "--stem", type=click.Choice(STEMS), help="First layers of a ResNet; auto: cifar up to 64 px, imagenet above."
)
@click.option("--image-size", type=int, help="Side of a view and of the exported input, in pixels.")
@click.option("--max-steps", type=int, help="End after so many optimizer steps, schedules included.")
@click.option("--accumulate", type=int, help="Split each batch into so many micro-batches.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="Optimizer.")
@click.option("--lr", type=float, help="Base learning rate per 256 images.")
@click.option("--tau", type=float, help="Target network's momentum at the start.")
@click.option("--seed", type=int, help="Seed of weights, order and augmentation.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="auto: bf16 where it is fast.")
@click.option("--compile/--no-compile", default=None, help="torch.compile; unset: on CUDA only.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting of docs/recipe.md, as --set knn_every=5 or --set view1.crop_area=[0.2,1].",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out; start it when there is none.")
def train(data: Path, out: Path, val_data: Path | None, resume: bool, **options: Any) -> None:
    """Learn an encoder from the unlabelled images in DATA: a folder (searched to every depth) or an .npz file.

    Without --preset: ResNet-50 at 224 px with the paper's 100-epoch settings, batch 256.
    """
    from byol.run import RunFolder

    run = RunFolder(out)
    try:
        config = chosen_config(run.config() if resume and run.exists() else None, options)
        if config.timm_name:
            from byol.timm_encoder import check_name  # without timm `main` names the extra

            check_name(config.timm_name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    run_training(config, data, out, val_data, resume)
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


def run_training(config: TrainConfig, data: Path, out: Path, val_data: Path | None, resume: bool = False) -> None:
    """Train from images to a finished run folder, with progress on stderr.

    Raises `ValueError` or `OSError` for whatever a user can cause, `click.ClickException` when stopped by a signal.
    """
    from byol.data import canvas_side, load_canvases, source_digest
    from byol.monitor import KNNMonitor
    from byol.run import RunFolder
    from byol.train import Interrupted, Trainer, fit

    run = RunFolder(out)
    source = open_source(data)
    continuing = resume and run.exists()
    if not config.canvas_size:
        side = run.config().canvas_size if continuing else canvas_side(source, config.image_size)
        config = config.replace(canvas_size=side)
    with progress(f"decode {source.name}", len(source)) as advance:
        images = load_canvases(source, config.canvas_size, advance)
    note_skipped(images.skipped)
    facts = {"name": data.resolve().name, "images": len(images), "digest": source_digest(source)}
    trainer = Trainer(config, images)
    knn = KNNMonitor(config, source, open_source(val_data)) if val_data else None
    start = _continue(trainer, run, facts) if continuing else 0
    if not continuing:
        run.create(config, {"data": facts, "skipped": [vars(item) for item in images.skipped]})
    stem = "" if config.timm_name else f" ({config.resolved_stem} stem)"
    note(
        f"{config.arch}{stem} at {config.image_size} px on {len(images)} images, "
        f"{trainer.plan.total} steps of {config.batch_size}, {trainer.device.type}, {trainer.precision}"
        + (", compiled" if trainer.compiled else "")
        + (f"; continuing after step {start}" if start else "")
    )
    with Reporter(trainer.plan.total, start) as reporter:
        try:
            fit(trainer, run, facts, start, knn, reporter.report, reporter.warn)
        except Interrupted as error:
            raise click.ClickException(str(error)) from error


def _continue(trainer: Trainer, run: RunFolder, facts: dict[str, Any]) -> int:
    """Load the newest checkpoint; the number of finished steps. Raises `ValueError` when the images are others."""
    checkpoint = run.checkpoint()
    if checkpoint is None:
        return 0
    if checkpoint.data != facts:
        raise ValueError(f"{run.path} was trained on {checkpoint.data}, but the images now are {facts}")
    trainer.load(checkpoint)
    return checkpoint.step


class Reporter:
    """Metrics for people: a bar on a terminal, else a line each time."""

    def __init__(self, total: int, start: int):
        self.total = total
        self.knn = ""
        self.bar = progress_bar("train", total, start) if sys.stderr.isatty() else None

    def __enter__(self) -> Reporter:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def report(self, record: dict[str, Any]) -> None:
        """Show one line of metrics."""
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
