"""`byol train`: options to a `TrainConfig`, progress to stderr, results to the run folder."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from byol.config import ARCHITECTURES, OPTIMIZERS, STEMS, TrainConfig, ViewConfig, setting_type
from byol.images import ImageSource, Skipped, open_source
from byol.presets import PRESETS

CONSOLE = Console(stderr=True, highlight=False, soft_wrap=True)


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
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    run_training(config, data, out, val_data, resume)
    CONSOLE.print(f"Done. Next: byol export {out} --out BUNDLE")


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
    from byol.data import ImageTensor, canvas_side, load_canvases, source_digest
    from byol.monitor import KNNMonitor
    from byol.run import RunFolder
    from byol.train import Interrupted, Trainer, fit

    run = RunFolder(out)
    source = open_source(data)
    continuing = resume and run.exists()
    if not continuing and not config.canvas_size:
        config = config.replace(canvas_size=canvas_side(source, config.image_size))
    images: ImageTensor = _decode(source, lambda progress: load_canvases(source, config.canvas_size, progress))
    tell_skipped(images.skipped)
    facts = {"name": data.resolve().name, "images": len(images), "digest": source_digest(source)}
    trainer = Trainer(config, images)
    knn = KNNMonitor(config, source, open_source(val_data)) if val_data else None
    start = 0
    if continuing:
        checkpoint = run.checkpoint()
        if checkpoint is not None:
            if checkpoint.data != facts:
                raise ValueError(f"{out} was trained on {checkpoint.data}, but {data} holds {facts}")
            trainer.load(checkpoint)
            start = checkpoint.step
        CONSOLE.print(f"Continuing {out} after step {start} of {trainer.plan.total}")
    else:
        run.create(config, {"data": facts, "skipped": [vars(item) for item in images.skipped]})
    CONSOLE.print(
        f"{config.arch} ({config.resolved_stem} stem) at {config.image_size} px on {len(images)} images, "
        f"{trainer.plan.total} steps of {config.batch_size}, {trainer.device.type}, {trainer.precision}"
        + (", compiled" if trainer.compiled else "")
    )
    with Reporter(trainer.plan.total, start) as reporter:
        try:
            fit(trainer, run, facts, start, knn, reporter.report, reporter.warn)
        except Interrupted as error:
            raise click.ClickException(str(error)) from error


def tell_skipped(skipped: list[Skipped], most: int = 20) -> None:
    """List images that were left out, on stderr."""
    if skipped:
        CONSOLE.print(f"Skipped {len(skipped)} images that cannot be read:", style="yellow")
        for item in skipped[:most]:
            CONSOLE.print(f"  {item.path}: {item.reason}", markup=False)
        if len(skipped) > most:
            CONSOLE.print(f"  and {len(skipped) - most} more")


def _decode(source: ImageSource, load: Any) -> Any:
    with ExitStack() as stack:
        if not CONSOLE.is_terminal:
            CONSOLE.print(f"Decoding {len(source)} images")
            return load(None)
        bar = stack.enter_context(_progress("decoding", len(source)))
        return load(lambda count: bar.update(bar.task_ids[0], completed=count))


def _progress(name: str, total: int, start: int = 0) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=CONSOLE)
    progress.add_task(name, total=total, completed=start)
    return progress


class Reporter:
    """Metrics for people: a bar on a terminal, else a line each time."""

    def __init__(self, total: int, start: int):
        self.total = total
        self.knn = ""
        self.bar = _progress("training", total, start) if CONSOLE.is_terminal else None

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
            self.knn = f"  kNN {record['knn_top1']:.1f} %"
        text = (
            f"epoch {record['epoch']:.1f}  loss {record['loss']:.4f}  tau {record['tau']:.4f}  "
            f"{record['images_per_second']:.0f} images/s{self.knn}"
        )
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=record["step"], description=text)
        else:
            CONSOLE.print(f"step {record['step']}/{self.total}  {text}")

    def warn(self, message: str) -> None:
        """Show a warning."""
        CONSOLE.print(f"Warning: {message}", style="yellow", markup=False)
