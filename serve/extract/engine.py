"""Extract a source's features into one file or into memory. Folders of parts: `resumable.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from byol import outputs
from byol.files.atomic import made_folder
from byol.files.names import with_ending
from byol.files.places import behind_links
from byol.images.location import Location, is_url
from byol.images.picture.pages import Several
from byol.images.source import ImageSource, Skipped
from byol.outputs import Kind, require_output
from byol.serve.encoder import Encoder
from byol.serve.features.read import Features
from byol.serve.features.write import ERRORS, feature_file, write_errors
from byol.serve.pipeline import Batch, run_ahead

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Options:
    """How to extract: `dtype` of the features (float32, float16), decoding `threads` (0: one per usable core), and how
    many unreadable images it tolerates (None: any number); `thumbnails`: side in pixels of the pictures written beside
    the features, 0: none.
    """

    dtype: str = "float32"
    threads: int = 0
    max_errors: int | None = None
    thumbnails: int = 0


@dataclass(frozen=True)
class Extraction:
    """The result of an extraction: `images` rows in all, `computed` by this call in `seconds`, the `skipped` images,
    whether the output `was_complete` already, and which images are the first of `several` pictures.
    """

    images: int
    computed: int
    skipped: list[Skipped]
    seconds: float
    was_complete: bool = False
    several: Several = field(default_factory=Several)


def output_file(out: str) -> Path | None:
    """The features file that `--out` names, None for a folder. Raises `ValueError` for anything else."""
    if not out:
        raise ValueError("the name is empty; name a folder, or a file ending in .parquet, .npz or .csv")
    if is_url(out):
        raise ValueError("features are written to a local disk only; name a local path and copy them when done")
    path = Path(out)
    if path.is_file() and (out.endswith(("/", os.sep)) or not path.suffix):
        raise ValueError(f"{out} is a file; name a folder, or a file ending in .parquet, .npz or .csv")
    if path.is_dir() or out.endswith(("/", os.sep)) or not path.suffix:
        return None
    if path.suffix.lower() in (".parquet", ".npz", ".csv"):
        return path
    raise ValueError(f"{path.suffix!r} is not supported; end in .parquet, .npz or .csv, or in / for a folder")


class Batches(Protocol):
    """Anything that computes batches: a `Pipeline` here, or something that delegates."""

    def batches_of(
        self, sources: Iterable[ImageSource], threads: int = 0, thumbnails: int = 0
    ) -> Generator[tuple[ImageSource, Batch], None, None]:
        """The batches of several sources, one after the other; no batch mixes sources. See `Pipeline.batches_of`."""


class Engine(Batches, Protocol):
    """Computes batches of features: `feature_dim` is their size, `digest` the encoder's name."""

    feature_dim: int
    digest: str


def extract(encoder: Encoder, source: ImageSource, path: Path, options: Options, advance: Advance) -> Extraction:
    """Write the features of a source to one file, bounded in memory (but `.npz`: see `feature_file`).

    Skipped images are listed in `PATH.errors.parquet` beside it. Raises `ValueError`, leaving existing files as they
    were, when more are skipped than `options` allow or no image can be read.
    """
    start = time.perf_counter()
    images, several = 0, Several()
    skipped: list[Skipped] = []
    with (
        made_folder(behind_links(path).parent),
        feature_file(
            path, encoder.feature_dim, encoder.digest, options.dtype, thumbnails=bool(options.thumbnails)
        ) as write,
    ):
        for _, batch in checked_batches(encoder, [source], options, advance):
            ids, labels = [source.ids[i] for i in batch.indices], [source.labels[i] for i in batch.indices]
            write(ids, labels, batch.outputs, batch.thumbnails)
            images += len(batch.indices)
            skipped += batch.skipped
            several += Several.of(source.ids, batch.several)
        require_images(images, source, skipped)
        write_errors(errors_of(path), source.skipped, skipped)
    seconds = time.perf_counter() - start
    return Extraction(images, images, [*source.skipped, *skipped], seconds, several=several)


def errors_of(path: Path) -> Path:
    """The path of the error list that belongs to an output file."""
    return path.with_name(with_ending(path.name, f".{ERRORS}"))


def require_table(out: Path, kind: Kind, inputs: Sequence[Location]) -> None:
    """Raise `ValueError`, before the work, when writing a table and its error list would overwrite anything."""
    require_output(out, kind, inputs)
    require_output(errors_of(out), outputs.ERRORS, inputs)


def collect(encoder: Encoder, source: ImageSource, advance: Advance) -> tuple[Features, list[Skipped], Several]:
    """The features of a source in memory, the skipped images, and those that are the first of several pictures.

    Raises `ValueError` when no image can be read.
    """
    x = np.empty((len(source), encoder.feature_dim), np.float32)
    kept: list[int] = []
    skipped: list[Skipped] = []
    several = Several()
    for _, batch in checked_batches(encoder, [source], Options(), advance):
        x[len(kept) : len(kept) + len(batch.indices)] = batch.outputs
        kept += batch.indices
        skipped += batch.skipped
        several += Several.of(source.ids, batch.several)
    require_images(len(kept), source, skipped)
    ids, labels = [source.ids[i] for i in kept], [source.labels[i] for i in kept]
    features = Features(source.name, ids, labels, x[: len(kept)], encoder.digest, "", np.array(kept, np.int64))
    return features, [*source.skipped, *skipped], several


def checked_batches(
    pipeline: Batches, sources: Iterable[ImageSource], options: Options, advance: Advance, errors: int = 0
) -> Iterator[tuple[ImageSource, Batch]]:
    """The batches of some sources, computed ahead and counted; `errors` is the number skipped by earlier calls.

    Raises `ValueError` once more images are skipped than `options` allow.
    """
    started: ImageSource | None = None
    for source, batch in run_ahead(pipeline.batches_of(sources, options.threads, options.thumbnails)):
        new = [*(source.skipped if source is not started else ()), *batch.skipped]
        started = source
        if options.max_errors is not None and errors + len(new) > options.max_errors:
            item = new[max(0, options.max_errors - errors)]  # the first that is too many
            limit = "use --on-error skip to leave it out" if options.max_errors == 0 else ""
            limit = limit or f"that is more than --max-errors {options.max_errors}"
            raise ValueError(f"{item.path}: {item.reason} ({limit})")
        errors += len(new)
        yield source, batch
        advance(len(batch.indices) + len(batch.skipped))


def require_images(count: int, source: ImageSource, skipped: list[Skipped]) -> None:
    """Raise `ValueError` when no image could be read."""
    if count == 0:
        first = skipped[0]
        raise ValueError(
            f"none of the {len(source)} images of {source.name} can be read (first: {first.path}: {first.reason})"
        )
