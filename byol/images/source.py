"""Image sources. Torch-free.

Images are decoded on demand. An unreadable one raises `UnreadableImage`; `SourceUnavailable` is no image's fault and
stops the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from byol.images.columns import Computed, Labels

Place = bytes | int


class Opener(Protocol):
    """A source's function that decodes image `index`; `least_side`: see `byol.images.picture.read.read_image`."""

    def __call__(self, index: int, least_side: int = 0, /) -> Image.Image:
        """RGB, upright. Raises `UnreadableImage` and `SourceUnavailable`."""


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
    `skipped` what the listing left out
    `open`    decodes image i to RGB, upright (EXIF applied), a large JPEG at a smaller scale if `least_side` allows it;
              raises `UnreadableImage`
    `stamp`   a digest that changes when an image does; None where there is none (images in memory)
    `content` a digest that changes when images do, and is the same for a copy of them; None where there is none
    `listing` a digest of which files are listed, if these may change or be away for a while; else None
    `blocks`  int64: the first row of each run of rows that are read together (a Parquet row group); None where every
              image is equally near
    `places`  where another process finds the images (`open.open_place`): a path below the folder, or a row of the
              location; None where only this process has them
    `line`    the line that names image i in a list of images; None for one that no line can name, and where images are
              no files
    `start`   the folder in which a list's relative paths start; None where nothing depends on one
    """

    name: str
    ids: Sequence[str]
    labels: Labels
    skipped: Sequence[Skipped]
    open: Opener
    stamp: Callable[[], str] | None = None
    content: Callable[[], str] | None = None
    listing: Callable[[], str] | None = None
    blocks: np.ndarray | None = None
    places: Sequence[Place] | None = None
    line: Callable[[int], bytes | None] | None = None
    start: bytes | None = None

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
            lambda i, least_side=0: self.open(int(rows[i]), least_side),
            self.stamp,  # of all images, so it also changes when one of these does
            self.content,
        )
