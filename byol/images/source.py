"""What an image source is, and how its images are decoded and resized. Torch-free; training and serving share it.

Images are decoded on demand. One that cannot be read raises `UnreadableImage`; `SourceUnavailable` is no image's fault
and stops the work.
"""

from __future__ import annotations

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from byol.images.columns import Computed, Labels
from byol.images.labels import require_short
from byol.images.picture.budget import PIXELS
from byol.images.picture.read import read_image, to_rgb
from byol.images.surroundings import Anchors, SourceUnavailable, UnreadableImage

__all__ = [  # what lies in modules of its own belongs to this one for its users
    "Anchors",
    "ImageSource",
    "Labelled",
    "Place",
    "Preprocess",
    "Skipped",
    "SourceUnavailable",
    "UnreadableImage",
    "decode",
    "decode_all",
    "read_image",
    "require_known",
    "require_labels",
    "to_rgb",
    "usable_cores",
]

QUOTA = Path("/sys/fs/cgroup/cpu.max")
JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
SUFFIXES = frozenset({*JPEG, ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

T = TypeVar("T")
C = TypeVar("C")
Place = bytes | int


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageSource:
    """Images in a fixed order, decoded on demand. `byol.images.open.open_source` makes one from a location.

    `ids`     one per image: the path relative to the root with `/`, or the row number of an `.npz`
    `labels`  one per image: the class, or None for an image outside any class folder
    `skipped` what the listing itself had to leave out
    `open`    decodes image i to RGB, upright (EXIF applied); raises `UnreadableImage`
    `stamp`   a digest that changes when an image does; None where there is none (images in memory)
    `content` a digest that changes when images do, and is the same for a copy of them; None where there is none
    `listing` a digest of which files are listed, where these may change or be away for a while; None where they may not
    `blocks`  int64: the first row of each run of rows that are read together (a Parquet row group); None where every
              image is equally near
    `places`  where another process finds the images (`open.open_place`): a path below the folder, or a row of the
              location; None where only this process has them
    """

    name: str
    ids: Sequence[str]
    labels: Labels
    skipped: Sequence[Skipped]
    open: Callable[[int], Image.Image]
    stamp: Callable[[], str] | None = None
    content: Callable[[], str] | None = None
    listing: Callable[[], str] | None = None
    blocks: np.ndarray | None = None
    places: Sequence[Place] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> list[str]:
        """The distinct labels, sorted."""
        return self.labels.classes

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSource:
        """The same source reduced to some of its images, in the given order."""
        rows = np.asarray(indices, np.int64)
        return ImageSource(
            self.name,
            Computed(len(rows), lambda i: self.ids[int(rows[i])]),
            self.labels.take(rows),
            self.skipped,
            lambda i: self.open(int(rows[i])),
            self.stamp,  # of all images: it changes when one of these does
            self.content,
        )


class Labelled(Protocol):
    """What has a name and one label, or None, for each of its images."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def labels(self) -> Sequence[str | None]:
        """The classes."""


def require_labels(source: ImageSource, least_classes: int = 2) -> list[str]:
    """The label of every image.

    Raises `ValueError` when one has none, or when there are fewer than `least_classes` (1 for a test set).
    """
    missing = source.labels.missing
    if len(missing):
        raise ValueError(
            f"{source.name}: {len(missing)} of {len(source)} images have no label (first: {source.ids[missing[0]]})"
            f"{source.labels.why and f', as {source.labels.why}'}; put each image into a sub-folder named after its "
            "class or move it away, or give an .npz with `labels`"
        )
    if len(source.classes) < least_classes:
        raise ValueError(
            f"{source.name} holds one class only ({source.classes[0]}), so there is nothing to tell apart; "
            "point to the folder whose sub-folders are the classes"
        )
    require_short(source.classes, source.name)
    return [label for label in source.labels if label is not None]


def require_known(train: Labelled, test: Labelled) -> None:
    """Raise `ValueError` when a test set has classes that training lacks."""
    known = {label for label in train.labels if label is not None}
    unknown = sorted({label for label in test.labels if label is not None} - known)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"{test.name} has classes that {train.name} lacks: {', '.join(unknown[:5])}{more} "
            f"(training classes: {', '.join(sorted(known)[:5])}{', ...' if len(known) > 5 else ''})"
        )


# ------------------------------------------------------------------------------------------- resize, decode all


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the encoder's input: the shorter side to `resize`, then the central `crop` square.

    Done in one step: the central square of the source, of side `crop * min(W, H) / resize`, is resampled to
    `crop` x `crop` (bicubic with antialiasing, as Pillow's `Image.resize` with `box` does).
    """

    resize: int
    crop: int

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"preprocessing needs 1 <= crop <= resize, found crop {self.crop}, resize {self.resize}")

    @classmethod
    def for_size(cls, size: int) -> Preprocess:
        """The usual evaluation crop: 224 from 256 (the paper's 7/8); small images (up to 64 px) whole."""
        return cls(resize=size if size <= 64 else round(size * 8 / 7), crop=size)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB image as uint8 (crop, crop, 3)."""
        width, height = image.size
        side = self.crop * min(width, height) / self.resize
        left, top = (width - side) / 2, (height - side) / 2
        size = (self.crop, self.crop)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC, (left, top, left + side, top + side)))


def decode(
    source: ImageSource, transform: Callable[[Image.Image], T], threads: int = 0
) -> Iterator[tuple[int, T | UnreadableImage]]:
    """Yield (index, transform(image)) in order, or (index, the error) where an image cannot be read.

    Decodes in `threads` threads (0: one per usable core), at most a few chunks ahead of the consumer.
    """
    return ((index, result) for _, index, result in decode_all([source], transform, threads))


def decode_all(
    sources: Iterable[ImageSource], transform: Callable[[Image.Image], T], threads: int = 0
) -> Iterator[tuple[ImageSource, int, T | UnreadableImage]]:
    """The same for several sources, one after the other; each is asked for when the last chunk before it is begun."""
    threads = threads or usable_cores()

    def chunks() -> Iterator[tuple[ImageSource, range]]:
        for source in sources:
            size = 32 if len(source) >= 32 * threads else 1
            yield from ((source, range(i, min(i + size, len(source)))) for i in range(0, len(source), size))

    def work(chunk: tuple[ImageSource, range]) -> list[tuple[ImageSource, int, T | UnreadableImage]]:
        source, indices = chunk
        return [(source, i, _attempt(source, transform, i)) for i in indices]

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        yield from _in_order(pool, work, chunks(), ahead=2 * threads)


def _attempt(source: ImageSource, transform: Callable[[Image.Image], T], index: int) -> T | UnreadableImage:
    try:
        with PIXELS:  # until nothing but the transform's result is left
            return transform(source.open(index))
    except UnreadableImage as error:
        return error


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[C], list[T]],
    chunks: Iterator[C],
    ahead: int,
) -> Iterator[T]:
    pending: deque[Future[list[T]]] = deque(pool.submit(work, chunk) for chunk in islice(chunks, ahead))
    try:
        while pending:
            results = pending.popleft().result()
            pending.extend(pool.submit(work, chunk) for chunk in islice(chunks, 1))
            yield from results
    finally:
        for future in pending:
            future.cancel()


def usable_cores() -> int:
    """The cores this process may run on: its affinity mask and its container's quota, where the system has them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _quota())))


@functools.cache
def _quota() -> float:
    """The cores' worth of time that the control group of a container grants (cgroup v2); infinite without a limit."""
    try:
        granted, period = QUOTA.read_text().split()
        return float(granted) / float(period)
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf
