"""A run's images, decoded before it begins or as they are needed, and the order in which it sees them.

Legend: N images, B batch, M canvas pixels, S view pixels.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from byol.files.readers import Readers
from byol.files.regular import SourceUnavailable
from byol.images.decode import JPEG_MARGIN
from byol.images.picture.budget import PIXELS
from byol.images.picture.extent import extent
from byol.images.picture.pages import Several, is_first_of_several
from byol.images.source import ImageSource, Skipped
from byol.images.surroundings import GO_ON, UnreadableImage
from byol.machine import usable_cores
from byol.text import printable

FURTHER = 4096  # images of the source that are tried when none of a batch can be read

Transform = Callable[[Image.Image], tuple[np.ndarray, float]]


@dataclass(frozen=True)
class Intake:
    """How a run reads its images, which decides their order.

    `streamed`: in blocks, unreadable images replaced in their batch. Otherwise all are decoded before the first step,
    in any order, without the unreadable ones: `left_out` are their places in the source, where several images may have
    the same id. Earlier versions recorded ids: `left_out_ids`.
    """

    streamed: bool
    left_out: frozenset[int] = frozenset()
    left_out_ids: frozenset[str] = frozenset()

    @classmethod
    def of(cls, images: ImageTensor | StreamedImages, source: ImageSource) -> Intake:
        """For a run that begins with these images of a source."""
        if isinstance(images, StreamedImages):
            return cls(True)
        return cls(False, frozenset(images.unreadable(source)))

    def count(self, source: ImageSource) -> int:
        """How many images of a source the run uses."""
        return len(source) if self.streamed else len(self.rows(source))

    @classmethod
    def from_text(cls, text: str) -> Intake:
        """The inverse of `to_text`."""
        streamed, left_out, left_out_ids = json.loads(text)
        return cls(streamed, frozenset(left_out), frozenset(left_out_ids))

    def to_text(self) -> str:
        """Text for another process."""
        return json.dumps([self.streamed, sorted(self.left_out), sorted(self.left_out_ids)])

    def rows(self, source: ImageSource) -> np.ndarray:
        """Where in the source the run's images are, int64."""
        rows = np.setdiff1d(np.arange(len(source)), np.array(sorted(self.left_out), np.int64), assume_unique=True)
        if not self.left_out_ids:
            return rows
        return np.array([row for row in rows.tolist() if source.ids[row] not in self.left_out_ids], np.int64)

    def recorded(self, skipped: list[Skipped]) -> list[dict[str, Any]]:
        """What `ImageTensor.skipped` lists, for `config.json`; `row`: the place in the source, if it has one."""
        rows = [*[None] * (len(skipped) - len(self.left_out)), *sorted(self.left_out)]
        return [{**vars(item), "row": row} for item, row in zip(skipped, rows, strict=True)]


@dataclass(frozen=True)
class ImageTensor:
    """Decoded images.

    `pixels`  uint8 (N, M, M, 3), in memory or mapped from a file
    `aspect`  float32 (N,) width / height of the original: a canvas holds the whole picture, stretched to a square,
              and the crop of a view undoes the stretching
    `indices` int64 (N,) where each row stands in its source (rows of unreadable images are absent)
    `skipped` what the listing left out, then the unreadable images in their order
    `rows`    int64 (N,): where in `pixels` and `aspect` the images are, if these hold more; else None
    `several` those that are the first of several pictures in a file
    """

    pixels: Tensor
    aspect: Tensor
    indices: np.ndarray
    skipped: list[Skipped]
    rows: Tensor | None = None
    several: Several = field(default_factory=Several)

    def __len__(self) -> int:
        return len(self.indices)

    def unreadable(self, source: ImageSource) -> dict[int, str]:
        """The places of the unreadable images in the source that was decoded, in order, and why each is."""
        rows = np.setdiff1d(np.arange(len(source)), self.indices).tolist()
        reasons = [item.reason for item in self.skipped[len(self.skipped) - len(rows) :]]
        return dict(zip(rows, reasons, strict=True))


def image_tensor(
    pixels: np.ndarray, aspect: np.ndarray, indices: np.ndarray, skipped: list[Skipped], several: Several
) -> ImageTensor:
    """Arrays as images; of `pixels` (uint8, (N or more, M, M, 3)), which may be read only, the first rows are used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")  # and nobody writes to it
        rows = torch.from_numpy(pixels[: len(indices)])
    return ImageTensor(rows, torch.from_numpy(aspect), indices, skipped, several=several)


class StreamedImages:
    """Images decoded each time they are needed, for sources larger than memory and cache.

    A row is the image's place in its source. `skipped` lists the unreadable ones met so far, `several` those that are
    the first of several pictures. `close` stops its threads.
    """

    def __init__(self, source: ImageSource, canvas: int):
        self.source, self.canvas = source, canvas
        self._unreadable: dict[int, str] = {}
        self._several: set[int] = set()
        self._pool = Readers(usable_cores(), "stream")

    def __len__(self) -> int:
        return len(self.source)

    @property
    def skipped(self) -> list[Skipped]:
        """The images unreadable so far, those of the listing first."""
        met = [Skipped(self.source.ids[row], reason) for row, reason in sorted(self._unreadable.items())]
        return [*self.source.skipped, *met]

    @property
    def several(self) -> Several:
        """Those met so far."""
        return Several.of(self.source.ids, sorted(self._several))

    def close(self) -> None:
        """Stop the threads, without waiting for a disk or server that is silent."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Canvases uint8 (B, M, M, 3) and aspects (B,) of some rows.

        An unreadable image is replaced by the next readable one of its batch, so each batch is full; where it has none,
        by the next one of the source. Raises `SourceUnavailable`, also when none of the next `FURTHER` can be read.
        """
        pixels = np.empty((len(rows), self.canvas, self.canvas, 3), np.uint8)
        aspect = np.empty(len(rows), np.float32)
        transform = squeeze(self.canvas)

        def one(place: int, row: int) -> bool:
            try:
                with PIXELS:
                    image = self.source.open(row, least_side_of(self.canvas))
                    pixels[place], aspect[place] = transform(image)
                    if is_first_of_several(image):
                        self._several.add(row)
            except UnreadableImage as error:
                self._unreadable[row] = str(error)
                return False
            return True

        good = np.array(list(self._pool.map(one, range(len(rows)), rows.tolist())))
        if not good.any():
            last = int(rows[-1])
            tried = range(last + 1, last + 1 + min(FURTHER, len(self)))
            good[0] = any(one(0, row % len(self)) for row in tried)
            if not good[0]:
                count = len(rows) + len(tried)
                raise SourceUnavailable(f"{none_readable(self.source, count, self.skipped)}; {GO_ON}")
        readable, bad = np.flatnonzero(good), np.flatnonzero(~good)
        instead = readable[np.searchsorted(readable, bad) % len(readable)]
        pixels[bad], aspect[bad] = pixels[instead], aspect[instead]
        return torch.from_numpy(pixels), torch.from_numpy(aspect)


def least_side_of(canvas: int) -> int:
    """What an image that is squeezed onto a canvas of M pixels may keep of its shorter side, see `read_image`."""
    return math.ceil(JPEG_MARGIN * canvas)


def squeeze(canvas: int) -> Transform:
    """A function of an image to its canvas (M, M, 3) and the width / height of the original."""
    size = (canvas, canvas)

    def squeeze(image: Image.Image) -> tuple[np.ndarray, float]:
        whole = extent(image)
        square = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC, whole)
        return np.asarray(square), whole.width / whole.height

    return squeeze


def none_readable(source: ImageSource, count: int, skipped: list[Skipped]) -> str:
    """The message when no image of a source can be read."""
    reasons = "; ".join(f"{printable(item.path)}: {item.reason}" for item in skipped[:5])
    return f"{source.name}: none of {count} images can be read ({reasons})"
