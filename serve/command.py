"""The commands `extract`, `classify` and `info`. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note, note_device, note_skipped, progress, show_json, show_table
from byol.serve import PART_IMAGES, VARIANT_NAMES
from byol.serve.options import (
    BUNDLE,
    SOURCE,
    batch_option,
    device_option,
    json_option,
    max_errors_option,
    on_error_option,
    show,
    threads_option,
)

if TYPE_CHECKING:
    from byol.serve.extract import Options


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("images", type=SOURCE)
@click.option("--out", required=True, help="FILE.parquet, FILE.npz, or a folder.")
@device_option
@batch_option
@on_error_option
@click.option(
    "--variant",
    type=click.Choice(VARIANT_NAMES),
    default="fp32",
    show_default=True,
    help="Which of the bundle's encoders; auto: the fastest on the device.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the features written.",
)
@click.option(
    "--part-images",
    type=click.IntRange(1, 10_000_000),
    default=PART_IMAGES,
    show_default=True,
    help="Images of each part, where --out is a folder.",
)
@threads_option
@max_errors_option
@json_option
def extract(
    bundle: Path,
    images: Path,
    out: str,
    device: str,
    batch_size: int | None,
    variant: str,
    part_images: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Compute the features of IMAGES (a folder, an image, an .npz, shards) with BUNDLE.

    Into a folder they are written in parts: the same command again goes on behind the last finished part.
    """
    from byol.images import printable
    from byol.serve import extract as extraction
    from byol.serve.encoder import Encoder
    from byol.serve.features import ERRORS
    from byol.serve.parts import extract_parts
    from byol.sources import open_source

    try:
        file = extraction.output_file(out)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--out") from error
    chosen = _options(**options)
    source = open_source(images) if file else None
    encoder = Encoder(bundle, device, batch_size, variant)
    note_device(device, encoder.device, encoder.reason)
    if variant == "auto":
        note(f"variant: {encoder.variant}")
    with progress("extract", len(source) if source else None) as advance:
        if source and file:
            result = extraction.extract(encoder, source, file, chosen, advance)
        else:
            result = extract_parts(encoder, images, Path(out), chosen, advance, part_images)
    if result.computed == 0:
        note(f"{printable(out)} was complete already; for other images give an empty folder")
    errors = extraction.errors_of(file) if file else Path(out) / ERRORS
    note_skipped(result.skipped, listed_in=printable(errors))
    values: dict[str, Any] = {
        "images": result.images,
        "skipped": len(result.skipped),
        "dim": encoder.feature_dim,
        "images_per_second": round(result.computed / result.seconds, 3),
        "device": encoder.device,
        "out": printable(out),
        "variant": encoder.variant,
    }
    show(values, as_json)


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("images", type=SOURCE)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="FILE.parquet or FILE.csv.")
@device_option
@batch_option
@on_error_option
@threads_option
@max_errors_option
@json_option
def classify(
    bundle: Path, images: Path, out: Path, device: str, batch_size: int | None, as_json: bool, **options: Any
) -> None:
    """Classify IMAGES with the classifier in BUNDLE (see `byol linear --save-classifier` and `byol finetune`)."""
    from byol.images import printable
    from byol.serve import classify as classification
    from byol.serve.extract import errors_of
    from byol.sources import open_source

    if out.suffix.lower() not in (".parquet", ".csv"):
        raise click.BadParameter(f"{out.suffix!r} is not known: end in .parquet or .csv", param_hint="--out")
    chosen = _options(**options)
    source = open_source(images)
    classifier = classification.ImageClassifier(bundle, device, batch_size)
    note_device(device, classifier.device, classifier.reason)
    with progress("classify", len(source)) as advance:
        result = classification.classify(classifier, source, out, chosen, advance)
    note_skipped(result.skipped, listed_in=printable(errors_of(out)))
    values: dict[str, Any] = {
        "images": result.images,
        "skipped": len(result.skipped),
        "classes": len(classifier.classes),
        "images_per_second": round(result.images / result.seconds, 3),
        "device": classifier.device,
        "out": printable(out),
    }
    show(values, as_json)


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--verify", is_flag=True, help="Check every hash and run the golden inputs.")
@json_option
def info(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show what BUNDLE holds; with --verify, check it against itself."""
    from byol.serve.info import info_json, info_rows, verify_rows

    opened, values = info_json(bundle, verify)
    if as_json:
        show_json(values)
    else:
        show_table(info_rows(opened) + (verify_rows(values["verify"]) if verify else []))
    if verify and not values["verify"]["ok"]:
        raise ValueError("; ".join(values["verify"]["problems"]))


def _options(on_error: str, max_errors: int | None, decode_threads: int | None, dtype: str = "float32") -> Options:
    from byol.serve.extract import Options

    if on_error == "fail" and max_errors:
        raise click.UsageError("--on-error fail and --max-errors contradict each other; leave one of them out")
    return Options(dtype, decode_threads or 0, 0 if on_error == "fail" else max_errors)
