"""Files of several pictures, of which the first is read: stacks and animations. Torch-free.

Pillow's `n_frames` would decode a GIF to its end; here only headers are looked at, up to the second picture. A JPEG has
one: what cameras append to it (MPO) are previews and the other eye of the same view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from struct import unpack_from
from typing import TYPE_CHECKING

from byol.images.picture.bare import png_chunks, webp_chunks
from byol.images.picture.headers import NOT_THERE, gif_blocks, gif_screen_end

if TYPE_CHECKING:
    from PIL import Image

EXAMPLES = 3
MOST_DIRECTORIES = 64  # of a TIFF; before the next picture come its smaller versions
MOST_BLOCKS = 1 << 17  # of a GIF; a first frame has 33 MB in so many, and they take 10 ms

_SUBFILE, _OLD_SUBFILE = 254, 255  # tags of TIFF: whether a directory is a smaller version, or a mask, of another
_FRAME = 0x2C  # the byte with which one begins in a GIF
_ANIMATED = 2  # of WebP's flags
_KEY = "byol several"  # of Pillow's `info`


@dataclass(frozen=True)
class Several:
    """How many images are the first of several pictures in a file, and the ids of the first few."""

    count: int = 0
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, ids: Sequence[str], indices: Sequence[int]) -> Several:
        """Those at `indices` of a source with such ids."""
        return cls(len(indices), tuple(ids[i] for i in indices[:EXAMPLES]))

    def __add__(self, other: Several) -> Several:
        return Several(self.count + other.count, (*self.first, *other.first)[:EXAMPLES])

    def values(self) -> list[object]:
        """For JSON; `read` reads it back."""
        return [self.count, list(self.first)]

    @classmethod
    def read(cls, values: object) -> Several:
        """What `values` gave; None stands for none. Raises `ValueError` for anything else."""
        match values:
            case None:
                return cls()
            case [int(count), [*first]]:
                names = [one for one in first if isinstance(one, str)]
                if len(names) == len(first) <= count:
                    return cls(count, tuple(names[:EXAMPLES]))
        raise ValueError("expected a number and some names")


def mark_several(image: Image.Image) -> None:
    """Note with a decoded image that its file holds more."""
    image.info[_KEY] = True


def is_first_of_several(image: Image.Image) -> bool:
    """Whether `mark_several` was called; a stranger's file can only put texts into `info`."""
    return image.info.get(_KEY) is True


def holds_several(kind: str, content: bytes) -> bool:
    """Whether an encoded picture of Pillow's format `kind` is followed by others; False where damage hides them."""
    try:
        return kind in _HOLDS and _HOLDS[kind](content)
    except (*NOT_THERE, IndexError):
        return False


def _gif(content: bytes) -> bool:
    place = _frame_of(content, gif_screen_end(content))
    if content[place] != _FRAME:
        return False
    flags = content[place + 9]
    place += 11 + (3 << (flags & 7) + 1 if flags & 128 else 0)  # behind its own colours
    for _ in range(MOST_BLOCKS):
        if not content[place]:
            return content[_frame_of(content, place + 1)] == _FRAME
        place += 1 + content[place]
    return False


def _frame_of(content: bytes, place: int) -> int:
    """Where the extensions that begin at a place end: there the next frame begins, if there is one."""
    for _, _, end in islice(gif_blocks(content, place), MOST_BLOCKS):
        place = end
    return place


def _png(content: bytes) -> bool:
    for name, place, _ in png_chunks(content):
        if name in (b"acTL", b"IDAT"):  # APNG's frames are counted before the pixels
            return name == b"acTL" and int.from_bytes(content[place + 8 : place + 12], "big") > 1
    return False


def _tiff(content: bytes) -> bool:
    order = "<" if content[:2] == b"II" else ">"
    is_big = content[2:4] in (b"+\0", b"\0+")
    number, offset, step = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    (place,) = unpack_from(order + offset, content, 8 if is_big else 4)
    for directory in range(MOST_DIRECTORIES):
        if not place:
            break
        (count,) = unpack_from(order + number, content, place)
        entries = place + (8 if is_big else 2)
        if directory and not _is_version(content, order, range(entries, entries + min(count, 8) * step, step)):
            return True
        (place,) = unpack_from(order + offset, content, entries + count * step)
    return False


def _is_version(content: bytes, order: str, entries: range) -> bool:
    """Whether a directory, by the first of its entries, says that it is a smaller version or a mask of a picture."""
    for entry in entries:
        tag, kind = unpack_from(order + "HH", content, entry)
        (value,) = unpack_from(order + ("H" if kind == 3 else "I"), content, entry + (12 if entries.step == 20 else 8))
        if (tag == _SUBFILE and value & 5) or (tag == _OLD_SUBFILE and value == 2):
            return True
    return False


def _webp(content: bytes) -> bool:
    if content[12:16] != b"VP8X" or not content[20] & _ANIMATED:
        return False
    frames = (name for name, _, _ in webp_chunks(content, len(content)) if name == b"ANMF")
    return len(list(islice(frames, 2))) == 2


_HOLDS: dict[str, Callable[[bytes], bool]] = {"GIF": _gif, "PNG": _png, "TIFF": _tiff, "WEBP": _webp}
