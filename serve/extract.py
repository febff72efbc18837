"""Extraction: a source through an encoder, into a features file or into memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from byol.images import ImageSource, Skipped, printable
from byol.serve.encoder import Encoder
from byol.serve.features import ERRORS, PART, Features, feature_file, write_errors
from byol.serve.pipeline import Batch, Pipeline

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Extraction:
    """What an extraction did. `images` counts the rows written, `skipped` what was left out."""

    images: int
    skipped: list[Skipped]
    seconds: float


def output_files(out: str) -> tuple[Path, Path]:
    """The features file and the list of errors for `--out`. Raises `ValueError` when it is neither file nor folder."""
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)) or not path.suffix:
        return path / PART, path / ERRORS
    if path.suffix.lower() in (".parquet", ".npz"):
        return path, path.with_name(f"{path.stem}.errors.parquet")
    raise ValueError(f"{path.suffix!r} is not known: end in .parquet or .npz, or in / for a folder")


def extract(encoder: Encoder, source: ImageSource, out: tuple[Path, Path], fail: bool, advance: Advance) -> Extraction:
    """Write the features of a source to `output_files`' paths, bounded in memory (but `.npz`: see `feature_file`).

    `fail`: stop at the first image that cannot be read. Raises `ValueError` then, and when none can be read; whatever
    stood under the final names stays as it was.
    """
    path, errors = out
    _refuse_other_parts(path)
    start = time.perf_counter()
    images = 0
    skipped: list[Skipped] = []
    with folder(path.parent), feature_file(path, encoder.feature_dim, encoder.digest) as write:
        for batch in checked_batches(encoder, source, fail, advance):
            write([source.ids[i] for i in batch.indices], [source.labels[i] for i in batch.indices], batch.outputs)
            images += len(batch.indices)
            skipped += batch.skipped
        require_images(images, source, skipped)
        write_errors(errors, source.skipped, skipped)
    return Extraction(images, [*source.skipped, *skipped], time.perf_counter() - start)


def collect(encoder: Encoder, source: ImageSource, advance: Advance) -> tuple[Features, list[Skipped]]:
    """The features of a source in memory, and what was left out. Raises `ValueError` when no image can be read."""
    x = np.empty((len(source), encoder.feature_dim), np.float32)
    kept: list[int] = []
    skipped: list[Skipped] = []
    for batch in checked_batches(encoder, source, False, advance):
        x[len(kept) : len(kept) + len(batch.indices)] = batch.outputs
        kept += batch.indices
        skipped += batch.skipped
    require_images(len(kept), source, skipped)
    ids, labels = [source.ids[i] for i in kept], [source.labels[i] for i in kept]
    return Features(source.name, ids, labels, x[: len(kept)], encoder.digest), [*source.skipped, *skipped]


def checked_batches(pipeline: Pipeline, source: ImageSource, fail: bool, advance: Advance) -> Iterator[Batch]:
    """The batches of a source, counted. Raises `ValueError` at the first image that cannot be read, with `fail`."""
    if fail and source.skipped:
        raise _failed(source.skipped[0])
    for batch in pipeline.batches(source):
        if fail and batch.skipped:
            raise _failed(batch.skipped[0])
        yield batch
        advance(len(batch.indices) + len(batch.skipped))


def _failed(item: Skipped) -> ValueError:
    return ValueError(f"{item.path}: {item.reason} (--on-error skip would leave it out)")


def require_images(count: int, source: ImageSource, skipped: list[Skipped]) -> None:
    """Raise `ValueError` when no image could be read."""
    if count == 0:
        first = skipped[0]
        raise ValueError(
            f"none of the {len(source)} images of {source.name} can be read (first: {first.path}: {first.reason})"
        )


def _refuse_other_parts(path: Path) -> None:
    others = [part for part in path.parent.glob("part-*.parquet") if part != path] if path.name == PART else []
    if others:
        raise ValueError(
            f"{printable(path.parent)} holds {printable(others[0].name)} of another extraction; give an empty folder"
        )


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make a folder and its parents; those made here go again when the block fails."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
