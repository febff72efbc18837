"""What the settings of a session cost on a CPU: threads, spinning, memory, shapes, by size of batch.

    python -m benchmarks.speed.sessions BUNDLE PHOTOS --out FILE.json [--variant fp32] [--rounds 3] [--seconds 2]

"ours" is the session that `Encoder` opens; in each other row one setting is changed. Every row is a process of its own:
batches of 1 to 64 preprocessed images, then the photographs from their files in batches of the usual size. Rounds run
all rows in turn. Prints each row's images/s as a ratio to ours (medians over the rounds), and its peak memory.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort

from benchmarks.rows import FAILED, Row, Rows, said
from benchmarks.speed.inference import images_per_second, read_images
from benchmarks.speed.peak import peak_gb
from byol.bundle.folder import Bundle
from byol.bundle.manifest import VARIANTS
from byol.machine import usable_cores
from byol.serve import Encoder

BATCHES = (1, 2, 4, 8, 16, 32, 64)
FILES, MEMORY = "files", "peak_gb"
OURS = "ours"
TOGETHER = "a call for each core, of one thread"
FIXED = "a session for each size of batch"


def one_thread(options: ort.SessionOptions) -> None:
    options.intra_op_num_threads = 1


def spinning(options: ort.SessionOptions) -> None:
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")


def no_arena(options: ort.SessionOptions) -> None:
    options.enable_cpu_mem_arena = False


def pattern(options: ort.SessionOptions) -> None:
    options.enable_mem_pattern = True


def no_prepacking(options: ort.SessionOptions) -> None:
    options.add_session_config_entry("session.disable_prepacking", "1")


CHANGES: dict[str, Callable[[ort.SessionOptions], None]] = {
    "one thread": one_thread,
    TOGETHER: one_thread,
    "threads that spin": spinning,
    "no arena": no_arena,
    "with memory pattern": pattern,
    "no prepacking": no_prepacking,
    FIXED: lambda options: None,
}


def changed(row: str, bundle: Bundle, variant: str, batch: int) -> ort.InferenceSession:
    """A session like ours but for the row's change."""
    model, options = bundle.model(VARIANTS[variant]), ort.SessionOptions()
    options.log_severity_level = 3  # an entry that is given twice is a warning
    options.intra_op_num_threads, options.enable_mem_pattern = usable_cores(), False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")
    sizes = [len(content) for content in model.weights.values()]
    options.add_external_initializers_from_files_in_memory(list(model.weights), list(model.weights.values()), sizes)
    CHANGES[row](options)
    if row == FIXED:
        options.add_free_dimension_override_by_name("batch", batch)
    return ort.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])


def encoder_of(row: str, bundle: Path, variant: str, batch: int | None) -> Encoder:
    encoder = Encoder(bundle, "cpu", batch, variant)
    if row != OURS:
        encoder.session.inference = changed(row, Bundle.open(bundle), variant, encoder.batch_size)
    return encoder


def in_memory(row: str, bundle: Path, variant: str, images: np.ndarray, seconds: float) -> float:
    """images/s of calls with a batch (B, S, S, 3)."""
    encoder, calls = encoder_of(row, bundle, variant, len(images)), usable_cores() if row == TOGETHER else 1
    if calls == 1:
        return images_per_second(lambda: encoder.encode(images), len(images), seconds)
    with ThreadPoolExecutor(calls) as pool:
        return images_per_second(lambda: list(pool.map(encoder.encode, [images] * calls)), calls * len(images), seconds)


def from_files(row: str, bundle: Path, variant: str, photos: Path, seconds: float) -> float:
    """images/s of whole passes over the photographs, the first not counted."""
    from byol.images.open import open_source

    encoder, source, started, count = encoder_of(row, bundle, variant, None), open_source(photos), 0.0, 0
    while not started or time.perf_counter() - started < seconds:
        for _ in encoder.batches(source):
            pass
        count = count + len(source) if started else 0
        started = started or time.perf_counter()
    return count / (time.perf_counter() - started)


def worker(row: str, bundle: Path, photos: Path, options: dict[str, Any]) -> Row:
    variant, seconds = options["variant"], options["seconds"]
    images = read_images(photos, Encoder(bundle, "cpu").image_size, max(BATCHES))
    found = {str(size): round(in_memory(row, bundle, variant, images[:size], seconds), 1) for size in BATCHES}
    if row not in (TOGETHER, FIXED):
        found[FILES] = round(from_files(row, bundle, variant, photos, 3 * seconds), 1)
    return {**found, MEMORY: round(peak_gb(os.getpid()), 3)}


def measure(row: str, bundle: Path, photos: Path, options: dict[str, Any]) -> Row:
    printed = said("benchmarks.speed.sessions", "--worker", row, bundle, photos, json.dumps(options))
    found: Row = json.loads(printed.splitlines()[-1])
    return found


def table(rows: list[Row]) -> str:
    """A line for each row: ratios to ours by size of batch, medians over the rounds."""
    columns = [*map(str, BATCHES), FILES]

    def median(row: str, column: str) -> float:
        figures = [one[column] for one in rows if one["row"] == row and column in one]
        return statistics.median(figures) if figures else float("nan")

    lines = [f"| row | {' | '.join(columns)} | GB |", "|---" * (len(columns) + 2) + "|"]
    lines.append(
        f"| ours, images/s | {' | '.join(f'{median(OURS, one):.0f}' for one in columns)} | {median(OURS, MEMORY):.2f} |"
    )
    for row in CHANGES:
        ratios = [f"{median(row, one) / median(OURS, one):.2f}" for one in columns]
        lines.append(f"| {row} | {' | '.join(ratios)} | {median(row, MEMORY):.2f} |".replace("nan", "-"))
    return "\n".join(lines)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("photos", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--variant", default="fp32", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--seconds", default=2.0, show_default=True, help="Timed for each size of batch; files: three times that."
)
def main(bundle: Path, photos: Path, out: Path, rounds: int, **options: Any) -> None:
    rows = Rows(out, "benchmarks.speed.sessions", options=options)
    for number in range(rounds):
        for row in (OURS, *CHANGES):
            rows.find(row, partial(measure, row, bundle, photos, options), round=number + 1)
    click.echo(table([row for row in rows.rows if FAILED not in row]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        click.echo(json.dumps(worker(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5]))))
    else:
        main()
