"""Decoding: what an encoder sees of an image, and the threads that decode a source. Torch-free."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image

from byol.files.readers import Readers
from byol.images.picture.budget import PIXELS
from byol.images.picture.extent import extent
from byol.images.source import ImageSource
from byol.images.surroundings import UnreadableImage
from byol.machine import usable_cores

T = TypeVar("T")
C = TypeVar("C")

MARGIN = Fraction(8, 7)  # an image's shorter side to a crop's: 256 to 224, as the paper has it
# A JPEG's shorter side, as decoded, to what it is resized to. With 2, features of a photographed screen moved by more
# than a thousandth; with 2.5, photographs of 8 megapixels would come at 1/2 instead of 1/4 (benchmarks/README.md).
JPEG_MARGIN = 2.25


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the encoder's input: the shorter side to `resize`, then the central `crop` square.

    Done in one step: the central square of the source, of side `crop * min(W, H) / resize`, is resampled to
    `crop` x `crop` (bicubic with antialiasing, as Pillow's `Image.resize` with `box` does). With `jpeg_margin` a JPEG
    is decoded at the smallest of libjpeg's scales (1, 1/2, 1/4, 1/8) at which its shorter side is still at least
    `jpeg_margin * resize`; None: whole.
    """

    resize: int
    crop: int
    jpeg_margin: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"preprocessing needs 1 <= crop <= resize, found crop {self.crop}, resize {self.resize}")
        if self.jpeg_margin is not None and self.jpeg_margin < 1:
            raise ValueError(f"jpeg_margin must be at least 1, found {self.jpeg_margin}")

    @classmethod
    def for_size(cls, size: int) -> Preprocess:
        """The usual evaluation crop: 224 from 256 (the paper's 7/8); small images (up to 64 px) whole."""
        return cls(size if size <= 64 else round(size * MARGIN), size, JPEG_MARGIN)

    @property
    def least_side(self) -> int:
        """What `ImageSource.open` and `read_image` may keep of a JPEG's shorter side, in pixels; 0: all."""
        return math.ceil(self.resize * (self.jpeg_margin or 0))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB image as uint8 (crop, crop, 3)."""
        whole = extent(image)
        side = self.crop * min(whole.width, whole.height) / self.resize
        left, top = whole.left + (whole.width - side) / 2, whole.top + (whole.height - side) / 2
        size = (self.crop, self.crop)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC, (left, top, left + side, top + side)))


def decode(
    source: ImageSource, transform: Callable[[Image.Image], T], threads: int = 0, least_side: int = 0
) -> Iterator[tuple[int, T | UnreadableImage]]:
    """Yield (index, transform(image)) in order, or (index, the error) where an image cannot be read.

    Decodes in `threads` threads (0: one per usable core), at most a few chunks ahead of the consumer. `least_side`: as
    in `byol.images.picture.read.read_image`.
    """
    return ((index, result) for _, index, result in decode_all([source], transform, threads, least_side))


def decode_all(
    sources: Iterable[ImageSource], transform: Callable[[Image.Image], T], threads: int = 0, least_side: int = 0
) -> Iterator[tuple[ImageSource, int, T | UnreadableImage]]:
    """The same for several sources, one after the other; each is requested once the last chunk before it has begun."""
    threads = threads or usable_cores()

    def chunks() -> Iterator[tuple[ImageSource, range]]:
        for source in sources:
            size = 32 if len(source) >= 32 * threads else 1
            yield from ((source, range(i, min(i + size, len(source)))) for i in range(0, len(source), size))

    def work(chunk: tuple[ImageSource, range]) -> list[tuple[ImageSource, int, T | UnreadableImage]]:
        source, indices = chunk
        return [(source, i, _attempt(source, transform, i, least_side)) for i in indices]

    with Readers(threads, "decode") as pool:
        yield from _in_order(pool, work, chunks(), ahead=2 * threads)


def _attempt(
    source: ImageSource, transform: Callable[[Image.Image], T], index: int, least_side: int
) -> T | UnreadableImage:
    try:
        with PIXELS:  # until nothing but the transform's result is left
            return transform(source.open(index, least_side))
    except UnreadableImage as error:
        return error


def _in_order(
    pool: Executor,
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
