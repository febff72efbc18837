"""Where a picture lies in its pixels: one decoded at 1/8 of its size covers the last row and column in part only."""

from __future__ import annotations

from typing import Any, NamedTuple

from PIL import Image

_KEY = "byol extent"  # of Pillow's `info`, which goes along with an image
_MIRRORED = {2: (True, False), 3: (True, True), 4: (False, True), 6: (True, False), 7: (True, True), 8: (False, True)}
_ON_ITS_SIDE = {5, 6, 7, 8}


class Extent(NamedTuple):
    """The edges of a picture in pixels of its decoded image, real numbers."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """In decoded pixels."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """In decoded pixels."""
        return self.bottom - self.top


def extent(image: Image.Image) -> Extent:
    """The whole image, unless `note_extent` said otherwise and its size is still the same."""
    found = image.info.get(_KEY)
    if isinstance(found, Extent) and _is_of(found, image):  # a stranger's file can put texts into `info`
        return found
    return Extent(0, 0, *image.size)


def note_extent(image: Image.Image, found: Extent) -> None:
    """Keep it with the image, and with what is converted from it."""
    image.info[_KEY] = found


def forget_extent(image: Image.Image) -> Image.Image:
    """The image, or a copy that does not know its extent: to its caller it is a picture like any other."""
    if _KEY not in image.info:
        return image
    image = image.copy()
    del image.info[_KEY]
    return image


def turned_info(image: Image.Image, turn: int) -> dict[Any, Any]:
    """What belongs to an image after it is turned by EXIF's `turn`."""
    return {**image.info, _KEY: _turned(extent(image), image.size, turn)} if _KEY in image.info else image.info


def _turned(found: Extent, size: tuple[int, int], turn: int) -> Extent:
    (width, height), (left, top, right, bottom) = size, found
    if turn in _ON_ITS_SIDE:
        (width, height), (left, top, right, bottom) = (height, width), (top, left, bottom, right)
    across, down = _MIRRORED.get(turn, (False, False))
    if across:
        left, right = width - right, width - left
    if down:
        top, bottom = height - bottom, height - top
    return Extent(left, top, right, bottom)


def _is_of(found: Extent, image: Image.Image) -> bool:
    begins = 0 <= found.left < 1 and 0 <= found.top < 1
    return begins and 0 <= image.width - found.right < 1 and 0 <= image.height - found.bottom < 1
