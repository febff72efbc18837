"""`byol classify`: the class of every image, in a table. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from byol.console import note_device, note_several, note_skipped, progress
from byol.images.location import Location
from byol.options import LOCATION, Output, of_option
from byol.serve.commands.options import (
    BUNDLE,
    batch_option,
    device_option,
    extraction_options,
    json_option,
    max_errors_option,
    on_error_option,
    show,
    threads_option,
)


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("images", type=LOCATION)
@click.option("--out", required=True, type=Output(dir_okay=False), help="FILE.parquet or FILE.csv.")
@device_option
@batch_option
@on_error_option
@threads_option
@max_errors_option
@json_option
def classify(
    bundle: Path, images: Location, out: Path, device: str, batch_size: int | None, as_json: bool, **options: Any
) -> None:
    """Classify IMAGES with the classifier in BUNDLE (see `byol linear --save-classifier` and `byol finetune`)."""
    from byol import outputs
    from byol.images.open import open_source
    from byol.serve.encoder import ImageClassifier
    from byol.serve.extract.classes import classify as write_classes
    from byol.serve.extract.engine import errors_of, require_table
    from byol.text import printable

    if out.suffix.lower() not in (".parquet", ".csv"):
        raise click.BadParameter(f"{out.suffix!r} is not supported; end in .parquet or .csv", param_hint="--out")
    chosen = extraction_options(**options)
    with of_option("--out"):
        require_table(out, outputs.CLASSES, [images, bundle])
    source = open_source(images)
    classifier = ImageClassifier(bundle, device, batch_size)
    note_device(device, classifier.device, classifier.reason)
    with progress("classify", len(source)) as advance:
        result = write_classes(classifier, source, out, chosen, advance)
    note_skipped(result.skipped, listed_in=printable(errors_of(out)))
    note_several(result.several, result.images)
    values: dict[str, Any] = {
        "images": result.images,
        "skipped": len(result.skipped),
        "classes": len(classifier.classes),
        "images_per_second": round(result.images / result.seconds, 3),
        "device": classifier.device,
        "out": printable(out),
    }
    show(values, as_json)
