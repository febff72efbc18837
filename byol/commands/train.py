"""`byol train`: options to a `TrainConfig`, progress to stderr, results to the run folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note, show_json, show_table
from byol.encoders import ARCHITECTURES, TIMM
from byol.images.location import Location
from byol.machine import DEVICES
from byol.options import LOCATION, Duration, Output, export_check_option
from byol.text import quoted
from byol.training.config import LARGEST, OPTIMIZERS, PRECISIONS, STEMS, VIEWS, TrainConfig
from byol.training.data.view_config import ViewConfig
from byol.training.recipes.presets import PRESETS

if TYPE_CHECKING:
    from byol.training.recipes.settings import Job


def _one_line_each() -> str:
    """The presets with the first sentence of their descriptions."""
    lines = [f"  {name}: {(preset.__doc__ or '').strip().splitlines()[0]}" for name, preset in PRESETS.items()]
    return "\b\nPresets:\n" + "\n".join(lines)


@click.command(epilog=_one_line_each())
@click.argument("data", type=LOCATION, required=False)
@click.option("--out", type=Output(), required=True, help="Folder of the run.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help="Settings to start from, listed below; the options below override. Unset: a recipe that fits DATA.",
)
@click.option(
    "--time", "seconds", type=Duration(), metavar="TIME", help="Train for about 45m, 2h, 1h30m, kNN included."
)
@click.option(
    "--init",
    type=click.Path(exists=True, path_type=Path),
    metavar="RUN|BUNDLE|CHECKPOINT",
    help="Start from the weights of this run, checkpoint or bundle, with a new schedule.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and measure how long it takes; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: one JSON object on stdout.")
@click.option("--val-data", type=LOCATION, help="Labelled images for kNN accuracy while training.")
@click.option("--epochs", type=int, help="Passes over the images.")
@click.option("--batch-size", type=int, help="Images per optimizer step.")
@click.option(
    "--arch",
    metavar=f"[{'|'.join(ARCHITECTURES)}|{TIMM}NAME]",
    help="Encoder; timm:NAME is any model of timm's.",
)
@click.option(
    "--stem", type=click.Choice(STEMS), help="First layers of a ResNet; auto: cifar up to 64 px, imagenet above."
)
@click.option("--image-size", type=int, help="Side of a view and of the exported input, in pixels.")
@click.option("--max-steps", type=int, help="End after this many optimizer steps, schedules included.")
@click.option("--accumulate", type=int, help="Split each batch into this many micro-batches.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="Optimizer.")
@click.option("--lr", type=float, help="Base learning rate per 256 images.")
@click.option("--tau", type=float, help="Target network's momentum at the start.")
@click.option("--seed", type=int, help="Seed of weights, order and augmentation.")
@click.option("--device", type=click.Choice(DEVICES), help="Where to train.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="auto: bf16 where the hardware has it, else fp32.")
@click.option("--recompute", is_flag=True, default=None, help="Less memory for more time: activations are not kept.")
@click.option(
    "--compile/--no-compile",
    default=None,
    help="torch.compile for all or nothing; default: what pays.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting of docs/recipe.md, such as --set knn_every=5 or --set view1.crop_area=[0.2,1].",
)
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard event files (needs the `tensorboard` extra).")
@click.option("--nproc", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes, one per GPU.")
@click.option("--resume", is_flag=True, help="Continue the run in --out; start one if there is none.")
@export_check_option
def train(
    data: Location | None,
    out: Path,
    val_data: Location | None,
    tensorboard: bool,
    nproc: int,
    resume: bool,
    export_check: bool,
    init: Path | None,
    seconds: float | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn an encoder from the unlabelled images in DATA: a folder, an .npz file, shards (.tar, .parquet) or cifar10.

    Without --preset, a recipe is chosen by the number of images, their size and the device; --dry-run shows it. A run
    that is resumed knows its DATA.
    """
    from byol.training.job import run_training
    from byol.training.parallel.launcher import launch
    from byol.training.parallel.processes import launched_as
    from byol.training.recipes.settings import Job
    from byol.training.resumed import plan_of, require_began_with
    from byol.training.run_folder import RunFolder

    rank, processes = launched_as()
    listed = "-" in (str(data), str(val_data))
    own = _starts_processes(nproc, processes, listed)
    run = RunFolder(out)
    stored = run.config() if resume and run.exists() else None
    named = frozenset(text.partition("=")[0] for text in options["settings"])
    job = Job(data, out, val_data, resume, tensorboard, export_check, init, seconds, named=named)
    _require_consistent(job, stored, dry_run, as_json, options)
    if dry_run and own:
        raise click.UsageError("--dry-run measures one process; leave out --nproc")
    try:
        base = PRESETS[options["preset"]]() if options["preset"] else None
        change: Callable[[TrainConfig], TrainConfig] = partial(changed, options=options)
        if stored:
            require_began_with(run, stored, init)
            base, change = resumed(stored, options, bool(plan_of(run))), _as_it_is
        asked = change(base or _on_trial(options, nproc if own else 1))
        _require_possible(asked, val_data, nproc if own else 1)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    job = replace(job, device=asked.device)
    if dry_run:
        _show_forecast(base, job, change, as_json)
        return
    if own:
        if not launch(nproc, sys.argv[1:], listed):
            raise click.exceptions.Exit(1)
        return
    run_training(job, base, change)
    if rank == 0:
        note(f"Done. Next: byol export {quoted(out)} --out BUNDLE")


def _on_trial(options: dict[str, Any], processes: int) -> TrainConfig:
    """Settings to check options on where a recipe comes later, with the images. Raises `ValueError`.

    Their batch and encoder are such that none is refused for a value that nobody gave.
    """
    given = _given(TrainConfig(), options)
    parts = processes * (given["accumulate"] if type(given.get("accumulate")) is int else 1)
    batch = min(max(2, 2 * parts), LARGEST["batch_size"])
    return TrainConfig(batch_size=batch, arch=f"{TIMM}resnet10t" if given.get("drop_path") else TrainConfig.arch)


def _require_consistent(
    job: Job, stored: TrainConfig | None, dry_run: bool, as_json: bool, options: dict[str, Any]
) -> None:
    """Raise `UsageError` for options that exclude each other."""
    if job.data is None and stored is None:
        raise click.UsageError("Missing argument 'DATA': the images to train on. (Only --resume can do without.)")
    if as_json and not dry_run:
        raise click.UsageError("--json works only with --dry-run")
    if job.seconds and any(options[name] is not None for name in ("epochs", "max_steps")):
        raise click.UsageError("--time decides how many steps are taken; leave out --epochs and --max-steps")
    if stored and dry_run:
        raise click.UsageError("--dry-run is for a new run; leave out --resume")


def _require_possible(config: TrainConfig, val_data: Location | None, processes: int) -> None:
    """Raise `ValueError` for settings that cannot work, before anything is started."""
    from byol.training.device import resolve_device
    from byol.training.setup import micro_batch

    if config.timm_name:
        from byol.encoders.timm_models import check_name  # without timm `main` names the extra

        check_name(config.timm_name)
    if val_data and not config.knn_every:
        raise ValueError("--val-data measures kNN, but knn_every is 0; leave one of them out")
    if processes > 1:
        resolve_device(config.device, processes - 1)
        micro_batch(config, processes)  # else every process would report it


def _show_forecast(
    base: TrainConfig | None, job: Job, change: Callable[[TrainConfig], TrainConfig], as_json: bool
) -> None:
    from byol.training.recipes.dry_run import dry_run

    forecast = dry_run(base, job, change)
    if as_json:
        show_json(forecast.values())
    else:
        show_table(forecast.rows())


def _starts_processes(nproc: int, launched: int, list_comes: bool) -> bool:
    """Whether this process must start others; `launched`: how many a launcher started. Raises `UsageError`."""
    from byol.training.parallel.processes import is_own

    if launched > 1 and not is_own():
        if nproc > 1:
            raise click.UsageError(
                f"a launcher has already started {launched} processes (WORLD_SIZE); leave out --nproc {nproc}"
            )
        if list_comes:
            raise click.UsageError(
                "several processes cannot read one list from standard input; write it to a file, such as list.txt"
            )
    return nproc > 1 and not is_own()


def _as_it_is(config: TrainConfig) -> TrainConfig:
    return config


def resumed(stored: TrainConfig, options: dict[str, Any], planned: bool = False) -> TrainConfig:
    """The settings of a resumed run. Raises `ValueError` when an option is illegal, or differs from them.

    `planned`: to end in time, for which others than the options' may have been taken.
    """
    from byol.training.resumed import PLANNED, kept

    given = _given(stored, options)
    config = stored.replace(**given)  # which checks them
    asked = {name: getattr(config, name) for name in given}
    preset = {"preset": options["preset"]} if options["preset"] else {}
    return kept(stored, asked | preset, PLANNED - {"max_steps"} if planned else frozenset())


def changed(base: TrainConfig, options: dict[str, Any]) -> TrainConfig:
    """Settings overridden by the options given. Raises `ValueError` for an unknown or illegal value."""
    return base.replace(**_given(base, options))


def _given(base: TrainConfig, options: dict[str, Any]) -> dict[str, Any]:
    """The settings that the options name. Raises `ValueError`."""
    apart = ("settings", "preset")
    given = {name: value for name, value in options.items() if value is not None and name not in apart}
    if "compile" in given:
        given["compile"] = "all" if given["compile"] else "none"
    for text in options["settings"]:
        _apply_setting(base, given, text)
    return given


def _apply_setting(base: TrainConfig, given: dict[str, Any], text: str) -> None:
    """Add one `--set` to the given settings; `view1.` and its like reach into the views."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set {text!r} has no `=`; write NAME=VALUE")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value  # a plain word
    parsed = tuple(parsed) if isinstance(parsed, list) else parsed
    outer, dot, inner = name.partition(".")
    if name in ("preset", "init"):
        raise ValueError(f"{name} cannot be given by --set; use --{name}")
    if outer in VIEWS and not dot:
        raise ValueError(f"--set {name} needs a field of the view, such as --set {name}.flip=0.5")
    if not dot:
        given[name] = parsed
        return
    view = given.get(outer, getattr(base, outer, None))
    if not isinstance(view, ViewConfig) or inner not in vars(view):
        raise ValueError(f"--set {name}: no such setting")
    try:
        given[outer] = ViewConfig(**{**vars(view), inner: parsed})
    except ValueError as error:
        raise ValueError(f"{outer}.{error}") from error
