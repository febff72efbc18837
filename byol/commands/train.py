"""`byol train`: options to a `TrainConfig`, progress to stderr, results to the run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from byol.console import note
from byol.encoders import ARCHITECTURES, TIMM
from byol.images.location import Location
from byol.machine import DEVICES
from byol.options import LOCATION, Output, export_check_option
from byol.text import printable
from byol.training.config import OPTIMIZERS, PRECISIONS, STEMS, TrainConfig
from byol.training.data.view_config import ViewConfig
from byol.training.presets import PRESETS


@click.command()
@click.argument("data", type=LOCATION)
@click.option("--out", type=Output(), required=True, help="Folder of the run.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Settings to start from; the options below override.")
@click.option("--val-data", type=LOCATION, help="Labelled images for kNN accuracy while training.")
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
@click.option("--max-steps", type=int, help="End after this many optimizer steps, schedules included.")
@click.option("--accumulate", type=int, help="Split each batch into this many micro-batches.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="Optimizer.")
@click.option("--lr", type=float, help="Base learning rate per 256 images.")
@click.option("--tau", type=float, help="Target network's momentum at the start.")
@click.option("--seed", type=int, help="Seed of weights, order and augmentation.")
@click.option("--device", type=click.Choice(DEVICES), help="Where to train.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="auto: bf16 where it is fast.")
@click.option("--recompute", is_flag=True, default=None, help="Less memory for more time: activations are not kept.")
@click.option("--compile/--no-compile", default=None, help="torch.compile for all or nothing; unset: what pays.")
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
    data: Location,
    out: Path,
    val_data: Location | None,
    tensorboard: bool,
    nproc: int,
    resume: bool,
    export_check: bool,
    **options: Any,
) -> None:
    """Learn an encoder from the unlabelled images in DATA: a folder, an .npz file, shards (.tar, .parquet) or cifar10.

    Without --preset: ResNet-50 at 224 px with the paper's 100-epoch settings, batch 256.
    """
    from byol.training.device import resolve_device
    from byol.training.job import run_training
    from byol.training.parallel.processes import launch, launched_as
    from byol.training.run_folder import RunFolder
    from byol.training.trainer import micro_batch

    rank, processes = launched_as()
    listed = "-" in (str(data), str(val_data))
    own = _starts_processes(nproc, processes, listed)
    run = RunFolder(out)
    stored = run.config() if resume and run.exists() else None
    try:
        config = chosen_config(stored, options)
        if config.timm_name:
            from byol.encoders.timm_models import check_name, require_any_size  # without timm `main` names the extra

            check_name(config.timm_name)
            if config.start_size:
                require_any_size(config.timm_name)
        if val_data and not config.knn_every:
            raise ValueError("--val-data measures kNN, but knn_every is 0; leave one of them out")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if own:
        resolve_device(config.device, nproc - 1)
        micro_batch(config, nproc)  # else every process would report it
        if not launch(nproc, sys.argv[1:], listed):
            raise click.exceptions.Exit(1)
        return
    run_training(config, data, out, val_data, resume, tensorboard, export_check)
    if rank == 0:
        note(f"Done. Next: byol export {printable(out)} --out BUNDLE")


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


def chosen_config(stored: TrainConfig | None, options: dict[str, Any]) -> TrainConfig:
    """The configuration of a command: the stored run's or the preset's, overridden by the options given.

    Raises `ValueError` for an illegal value, or one that differs from those of a resumed run.
    """
    preset = options.pop("preset")
    base = stored or (PRESETS[preset]() if preset else TrainConfig())
    given = {name: value for name, value in options.items() if value is not None and name != "settings"}
    if "compile" in given:
        given["compile"] = "all" if given["compile"] else "none"
    for text in options["settings"]:
        _apply_setting(base, given, text)
    if stored is not None and given.get("canvas_size") == 0:
        del given["canvas_size"]  # the run decided that when it began
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
    if name == "preset":
        raise ValueError("preset cannot be given by --set; use --preset NAME")
    if outer in ("view1", "view2") and not dot:
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
