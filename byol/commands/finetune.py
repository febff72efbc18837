"""`byol finetune`: an encoder and a few labels in, accuracies and a classifier out."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from byol.bundle.folder import Bundle
from byol.console import at_work, note, note_skipped, progress, show_json, show_table, warnings_as_notes
from byol.encoders.pretrained import Pretrained
from byol.files.atomic import atomic_file
from byol.finetuning.protocol import Sets, Sweep, choose_images, read_sets
from byol.finetuning.tuner import FinetuneConfig, Tuner
from byol.images.location import Location
from byol.images.splits import describe, deviation
from byol.machine import DEVICES
from byol.options import LOCATION, FiniteRange, Output, export_check_option, note_same
from byol.pretrained import is_bundle, read_pretrained, weights_digest
from byol.run import FINETUNE, RESULT
from byol.signals import Stopped
from byol.text import on_one_line, printable, quoted
from byol.training.begun import Begun, Computed, difference, keeping_threads
from byol.training.config import PRECISIONS
from byol.training.device import enough_memory, resolve_device, resolve_precision
from byol.training.exportable import require_exportable
from byol.training.run_folder import RunFolder, versions

SCORES = ("top1", "top5", "mean_per_class")


@click.command()
@click.argument("encoder", metavar="RUN|BUNDLE", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=LOCATION)
@click.option("--out", type=Output(), required=True, help="Folder of the result.")
@click.option("--label-fraction", type=FiniteRange(0, 1, min_open=True), help="Use this share of each class.")
@click.option("--labels-per-class", type=click.IntRange(min=1), help="Use this many images of each class.")
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Random draws of these labels, each with a fit.",
)
@click.option("--test", type=LOCATION, help="Labelled images to score the final fits on.")
@click.option("--lr", type=float, multiple=True, help="Learning rate to try; repeatable.  [default: the paper's five]")
@click.option("--epochs", type=int, multiple=True, help="Passes to try; repeatable.  [default: the paper's 30 and 50]")
@click.option("--batch-size", type=int, default=FinetuneConfig.batch_size, show_default=True, help="Images per step.")
@click.option(
    "--crop-area",
    type=float,
    default=FinetuneConfig.crop_area,
    show_default=True,
    help="Smallest share of an image's area that a training crop covers.",
)
@click.option("--flip/--no-flip", default=True, show_default=True, help="Flip training images left to right at random.")
@click.option("--from-scratch", is_flag=True, help="Start from random weights instead of the encoder's: the baseline.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to run.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="Precision of training; auto: bf16 where the hardware has it. Accuracies are measured in fp32.",
)
@click.option("--resume", is_flag=True, help="Continue the sweep in --out; start one if there is none.")
@export_check_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")
def finetune(
    encoder: Path,
    data: Location,
    out: Path,
    label_fraction: float | None,
    labels_per_class: int | None,
    test: Location | None,
    resume: bool,
    export_check: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Fine-tune the encoder of RUN or BUNDLE on labelled images in DATA: all of them, or some of each class.

    Rate and epochs are chosen on a fifth of the labelled images; then all of them are fitted. `byol export OUT` makes
    the classifier of the first draw a bundle.
    """
    if label_fraction and labels_per_class:
        raise click.UsageError("--label-fraction and --labels-per-class exclude each other; give only one")
    swept = {name: value for name in ("lr", "epochs") if (value := options.pop(name))}
    try:
        config = FinetuneConfig(labels=labels_per_class or label_fraction or 1.0, **swept, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    note_same(data, test, "DATA and --test", "give other images as --test, or leave it out")
    try:
        with RunFolder(out).alone(), keeping_threads():
            values = run_finetuning(config, encoder, data, out, test, resume, export_check)
    except (KeyboardInterrupt, Stopped) as error:
        if not RunFolder(out).exists():
            raise
        why = str(error) or "stopped"  # Ctrl-C has no words
        raise click.ClickException(f"{why}; finished fits are kept, continue with --resume") from None
    if as_json:
        show_json(values)
    else:
        show_table(_rows(values))
    note(f"Done. Next: byol export {quoted(out)} --out BUNDLE")


def run_finetuning(
    config: FinetuneConfig,
    encoder: Path,
    data: Location,
    out: Path,
    test: Location | None = None,
    resume: bool = False,
    export_check: bool = False,
) -> dict[str, Any]:
    """The whole protocol into the folder `out`; what its `result.json` holds. Raises `ValueError` or `OSError`,
    and `click.UsageError` when a resumed one has other settings, encoder or images.

    `export_check`: refuse a run's encoder that cannot be exported before a new fine-tuning begins.
    """
    run = RunFolder(out)
    continuing = resume and run.exists()
    if not continuing:
        run.require_new()
    device, begun = resolve_device(config.device), run.begun(FINETUNE) if continuing else Begun()
    precision = resolve_precision(begun.computed.precision if begun.computed else config.precision, device)
    if begun.computed:
        begun.computed.take_threads(device.type, 1)
    computed = Computed.here(device, precision, "none", 1)
    source = read_pretrained(encoder)
    if source.finetuning:
        raise ValueError(f"{printable(encoder)} is already fine-tuned; give the run or bundle it was made from")
    if is_bundle(encoder) and Bundle.open(encoder).manifest.untrained_seed is not None and not config.from_scratch:
        raise ValueError(f"{printable(encoder)} is an untrained encoder; add --from-scratch, or give a trained one")
    chosen = choose_images(config, data, test)
    content = {
        "task": FINETUNE,
        "config": config.to_dict(),
        "encoder": {"name": encoder.resolve().name, **_identity(source)},
        "computed": asdict(computed),
        **chosen.facts,
    }
    if continuing:
        _require_same(run.content(FINETUNE), content)
        if changed := begun.changes(computed, versions(source.arch)):
            note(changed)
    elif export_check and not is_bundle(encoder):
        require_exportable(source)
    with warnings_as_notes(), progress("decode", None) as advance:
        sets = read_sets(chosen, source.preprocess, advance)
    note_skipped(sets.skipped)
    if continuing:
        run.remove_leftovers()
        if ignored := run.mend_metrics(FINETUNE).ignored:
            note(ignored)
    else:
        run.start(content, source.arch)
    note(f"{source.arch} at {source.image_size} px, {_headline(config, sets)}, {device.type}, {precision}")
    tuner = Tuner(config, source.image_size, source.mean, source.std, device, precision)
    with at_work(lambda: "fine-tune"), enough_memory(partial(_in_less_memory, config, source.image_size)):
        finals = Sweep(tuner, source, sets, run, lambda record: note(_line(record, config.draws))).fit()
    values = {**_summary(config, sets, finals), "device": device.type, "out": printable(out)}
    values["seconds"] = round(sum(record["seconds"] for record in run.metrics(FINETUNE)), 3)
    with atomic_file(out / RESULT) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
    return values


def _in_less_memory(config: FinetuneConfig, size: int) -> str:
    return f"{config.batch_size} images of {size} px at a time; use another --out and a smaller --batch-size"


def _headline(config: FinetuneConfig, sets: Sets) -> str:
    start = "from random weights" if config.from_scratch else "fine-tuned"
    return f"{start} on {len(sets.draws[0])} labelled images of {len(sets.names)} classes"


def _identity(source: Pretrained) -> dict[str, Any]:
    """What decides a result of an encoder, and no more: its weights, how they are computed with, and its images."""
    values = {name: getattr(source, name) for name in ("arch", "stem", "image_size", "resize")}
    normalised = {name: list(map(float, getattr(source, name))) for name in ("mean", "std")}
    return {"digest": weights_digest(source.encoder.state_dict()), **values, **normalised}


def _require_same(stored: dict[str, Any], content: dict[str, Any]) -> None:
    """Raise `click.UsageError` unless a resumed fine-tuning has the settings, encoder and images it began with."""
    old, new = _settings(stored), _settings(content)
    changed = sorted(name for name in new if name != "device" and _differ(old.get(name), new[name]))
    encoders = _other_encoder(stored.get("encoder"), content["encoder"])
    if changed or encoders:
        listed = ", ".join([*changed, *([f"encoder ({encoders})"] if encoders else [])])
        remedy = "give the encoder it began with, or " if encoders else ""
        raise click.UsageError(
            f"a resumed fine-tuning keeps its settings, encoder and images, but these differ: {listed}; "
            f"{remedy}start a new one with another --out"
        )


def _differ(old: object, new: object) -> bool:
    """Earlier versions recorded less of the images."""
    return difference(old, new) is not None if isinstance(old, dict) and isinstance(new, dict) else old != new


def _other_encoder(stored: object, now: dict[str, Any]) -> str:
    """In what an encoder differs from the one that a fine-tuning began with; empty where it does not.

    It may have got another name, and earlier versions recorded nothing but the digest of its weights.
    """
    old = stored if isinstance(stored, dict) else {}
    known = [name for name in now if name == "digest" or (name != "name" and name in old)]
    changed = [name for name in known if old.get(name) != now[name]]
    texts = [f"{name} {now[name]}, was {old[name]}" for name in changed if name != "digest"]
    return on_one_line("; ".join([*(["other weights"] if "digest" in changed else []), *texts]))


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    return {**content.get("config", {}), **{name: content.get(name) for name in ("data", "test")}}


def _line(record: dict[str, Any], draws: int) -> str:
    draw = f"draw {record['draw'] + 1}/{draws}  " if draws > 1 else ""
    scored = f"  {record['top1']:.2%} of {record['scored']} images" if record["scored"] else ""
    part = "final fit" if record["part"] == "final" else "trial    "
    loss = "diverged" if record["loss"] is None else f"loss {record['loss']:.4f}"
    return f"{draw}{part}  lr {record['lr']:g}  {record['epochs']} epochs  {loss}{scored}"


def _summary(config: FinetuneConfig, sets: Sets, finals: list[dict[str, Any]]) -> dict[str, Any]:
    """The result: means over the draws if there is a test set, and the values of each draw."""
    values: dict[str, Any] = {}
    if sets.test:
        values = {name: float(np.mean([record[name] for record in finals])) for name in SCORES}
        several = len(finals) > 1
        values["deviation"] = deviation([record["top1"] for record in finals]) if several else None
    shown = ("lr", "epochs", "images", *(SCORES if sets.test else ()))
    return {
        **values,
        "labels": describe(config.labels),
        "from_scratch": config.from_scratch,
        "classes": len(sets.names),
        "n_train": len(sets.draws[0]),
        "n_test": len(sets.test[1]) if sets.test else 0,
        "draws": [{name: record[name] for name in shown} for record in finals],
    }


def _rows(values: dict[str, Any]) -> list[tuple[str, object]]:
    """The result for people."""
    draws = values["draws"]
    rows = [(name, _shown(name, value)) for name, value in values.items() if name != "draws" and value is not None]
    for number, result in enumerate(draws, 1):
        rows.append((f"draw {number}", "  ".join(f"{name} {_shown(name, value)}" for name, value in result.items())))
    return rows


def _shown(name: str, value: object) -> object:
    return f"{value:.2%}" if name in (*SCORES, "deviation") else value
