"""`byol extract`: features into a file, or into a folder of parts by one process, several, or Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note, note_device, note_several, note_skipped, progress
from byol.images.location import Location
from byol.options import LOCATION, of_option
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
    variant_option,
)
from byol.serve.limits import PART_IMAGES

if TYPE_CHECKING:
    from byol.serve.encoder import Encoder
    from byol.serve.extract.engine import Extraction
    from byol.serve.extract.ray_engine import RayEngine
    from byol.serve.extract.resumable import Task


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("images", type=LOCATION)
@click.option("--out", required=True, help="FILE.parquet, FILE.npz, FILE.csv, or a folder (written in parts).")
@device_option
@batch_option
@on_error_option
@variant_option("Which of the bundle's encoders to use")
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
    help="Images per part, if --out is a folder.",
)
@click.option(
    "--thumbnails",
    type=click.IntRange(16, 1024),
    metavar="PIXELS",
    help="Also write what the encoder sees of each image, at most so wide, as a column for viewers (Parquet).",
)
@click.option(
    "--retry-skipped",
    is_flag=True,
    help="Redo finished parts that skipped images, if --out is a folder.",
)
@click.option("--processes", type=click.IntRange(1, 256), help="Processes that encode  [default: one per GPU].")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: a cluster decodes and encodes (needs the `ray` extra).",
)
@click.option(
    "--ray-address", help="Address of a running cluster, ray://HOST:10001 or auto  [default: start one here]."
)
@threads_option
@max_errors_option
@json_option
def extract(
    bundle: Path,
    images: Location,
    out: str,
    dtype: str,
    part_images: int,
    thumbnails: int | None,
    retry_skipped: bool,
    processes: int | None,
    engine: str,
    ray_address: str | None,
    as_json: bool,
    on_error: str,
    max_errors: int | None,
    decode_threads: int | None,
    **encoder: Any,
) -> None:
    """Compute the features of IMAGES (a folder, an image, an .npz, shards, a URL) with BUNDLE.

    A folder is written in parts. After an interruption, run the same command again: finished parts are kept.
    """
    from byol.images.walk import folded
    from byol.serve.extract.engine import errors_of
    from byol.serve.extract.resumable import Task
    from byol.serve.features.parts import errors_of_folder
    from byol.signals import Stopped
    from byol.text import printable

    file = _output(out, [images, bundle])
    if str(images) == "-" and (processes or 1) > 1:
        raise click.UsageError("only one process can read standard input; write the list to a file such as list.txt")
    _require_engine(engine, file, processes, decode_threads, ray_address)
    if thumbnails and (engine == "ray" or (file and file.suffix.lower() != ".parquet")):
        raise click.UsageError("--thumbnails needs --engine local, and --out FILE.parquet or a folder")
    if file and retry_skipped:
        raise click.UsageError("--retry-skipped is for a folder of parts; leave it out, a file is written whole")
    chosen = extraction_options(on_error, max_errors, decode_threads, dtype, thumbnails or 0)
    task = Task(images, Path(out), chosen, part_images, retry_skipped)
    try:
        if engine == "ray":
            result, facts = _by_ray(bundle, task, ray_address, encoder)
        else:
            result, facts = _here(bundle, task, file, processes, encoder)
    except Stopped as error:
        kept = "" if file else "; finished parts are kept, run the same command again to continue"
        raise click.ClickException(f"{error}{kept}") from None
    if result.was_complete:
        note(f"nothing left to do: {printable(out)} is complete; for other images use an empty folder")
    errors = errors_of(file) if file else errors_of_folder(Path(out))
    note_skipped(folded(result.skipped), listed_in=printable(errors))
    note_several(result.several, result.images)
    values = {
        "images": result.images,
        "skipped": len(result.skipped),
        "dim": facts.pop("dim"),
        "images_per_second": round(result.computed / result.seconds, 3) if result.computed else None,
        "device": facts.pop("device"),
        "out": printable(out),
    }
    show(values | facts, as_json)


def _require_engine(
    engine: str, file: Path | None, processes: int | None, decode_threads: int | None, ray_address: str | None
) -> None:
    """Raise `UsageError` where these contradict each other."""
    if file and (engine == "ray" or (processes or 1) > 1):
        raise click.UsageError(
            "several processes, and Ray, only write a folder of parts; end --out in a slash: features/"
        )
    if engine == "ray" and (processes or decode_threads):
        raise click.UsageError("--processes and --decode-threads are for --engine local; leave them out")
    if ray_address and engine != "ray":
        raise click.UsageError("--ray-address needs --engine ray")


def _output(out: str, inputs: list[Location]) -> Path | None:
    """The features file, None for a folder of parts; checked before the work."""
    from byol import outputs
    from byol.outputs import require_output_folder
    from byol.serve.extract.engine import output_file, require_table

    with of_option("--out"):
        file = output_file(out)
        if file:
            require_table(file, outputs.FEATURES, inputs)
        else:
            require_output_folder(Path(out), inputs)
    return file


def _here(
    bundle: Path, task: Task, file: Path | None, processes: int | None, options: dict[str, Any]
) -> tuple[Extraction, dict[str, Any]]:
    """Extract in this process, or in several on this machine."""
    from byol.images.open import open_source
    from byol.machine import gpu_count
    from byol.serve.encoder import Encoder
    from byol.serve.extract.engine import extract as extract_to_file
    from byol.serve.extract.processes import Crew, extract_in_processes
    from byol.serve.extract.resumable import extract_parts

    source = open_source(task.location) if file else None
    encoder = Encoder(bundle, **options)
    facts = _facts(encoder, options)
    gpus = gpu_count() if encoder.device == "cuda" else 0
    count = processes or max(1, gpus if str(task.location) != "-" else 1)
    with progress("extract", len(source) if source else None) as advance:
        if source and file:
            return extract_to_file(encoder, source, file, task.options, advance), facts
        if count == 1:
            return extract_parts(encoder, task, advance), facts
        crew = Crew(count, gpus, bundle, encoder.device, options["batch_size"], encoder.variant)
        digest, dim = encoder.digest, encoder.feature_dim
        del encoder  # its memory is for the workers
        return extract_in_processes(crew, task, digest, dim, advance), facts


def _by_ray(
    bundle: Path, task: Task, address: str | None, options: dict[str, Any]
) -> tuple[Extraction, dict[str, Any]]:
    from byol.serve.extract.ray_engine import RayEngine, cluster
    from byol.serve.extract.resumable import extract_parts

    with cluster(address), progress("extract", None) as advance:
        engine = RayEngine(bundle, task.location, **options)
        facts = _facts(engine, options)
        return extract_parts(engine, task, advance), facts


def _facts(engine: Encoder | RayEngine, options: dict[str, Any]) -> dict[str, Any]:
    """Facts for the result; notes on stderr what `auto` chose."""
    note_device(options["device"], engine.device, engine.reason)
    if options["variant"] == "auto":
        note(f"variant: {engine.variant}")
    return {"dim": engine.feature_dim, "device": engine.device, "variant": engine.variant}
