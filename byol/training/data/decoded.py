"""Decoded training images: in memory, mapped from the cache, or decoded as they are needed.

Legend: N images, B batch, M canvas pixels, S view pixels.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from byol.images.cache import SEVERAL, CacheError, DecodedCache, gigabytes
from byol.images.decode import MARGIN, Preprocess, decode
from byol.images.picture.pages import Several, is_first_of_several
from byol.images.source import ImageSource, Skipped
from byol.images.stamps import LOOKED_INTO, spread
from byol.images.surroundings import UnreadableImage
from byol.text import printable, reason_of
from byol.training.data.intake import (
    ImageTensor,
    Intake,
    StreamedImages,
    Transform,
    image_tensor,
    least_side_of,
    none_readable,
    squeeze,
)
from byol.training.data.kept import new_pixels, read_entry, write_rest

SMALL = 16 << 20  # bytes: fewer decoded images are held in memory and not cached, decoding them takes no time
CHUNK = 65_536  # names hashed at a time
CACHE_FORMAT = "3"  # changes with anything that makes the same file decode to other pixels

Advance = Callable[[int], None]


def open_images(
    source: ImageSource,
    canvas: int,
    advance: Advance | None = None,
    cache: DecodedCache | None = None,
    begun: Intake | None = None,
) -> ImageTensor | StreamedImages:
    """The images of a source for training: decoded if they fit into the cache, else streamed.

    `begun`: how a resumed run began. It gets the same images in the same order, whether there is room now or not.
    Raises `ValueError` when one of them can no longer be read.
    """
    cache, shape = cache or DecodedCache(), _canvas(canvas)
    try:
        if not (begun and begun.streamed):
            images = _held(source, shape, advance, cache)
            return _those_of(images, source, begun) if begun else images
    except CacheError as error:
        _tell(cache, f"{reason_of(error)}; decoding images anew for each batch")
    return StreamedImages(_in_any_order(source, begun) if begun and not begun.streamed else source, canvas)


def _tell(cache: DecodedCache, why: str) -> None:
    """Say that nothing is kept, unless nobody expects it."""
    if cache.limit:
        warnings.warn(why, stacklevel=3)


def _those_of(images: ImageTensor, source: ImageSource, begun: Intake) -> ImageTensor:
    """The images a run began with. Raises `ValueError` when one of them could not be decoded."""
    wanted = begun.rows(source)
    if np.array_equal(wanted, images.indices):
        return images
    lost = np.setdiff1d(wanted, images.indices)
    if len(lost):
        first, reason = source.ids[int(lost[0])], images.unreadable(source)[int(lost[0])]
        raise ValueError(
            f"{source.name}: {len(lost)} images of the run can no longer be read (first: {first}: {reason}); "
            "restore them, or start a new run with another --out"
        )
    rows = np.flatnonzero(np.isin(images.indices, wanted))  # others may have become readable
    return replace(images, indices=images.indices[rows], rows=torch.from_numpy(rows))


def _in_any_order(source: ImageSource, begun: Intake) -> ImageSource:
    """The images a run began with, to be streamed in the order they had when there was room to keep them."""
    if source.blocks is not None:
        warnings.warn(
            f"no room to keep {source.name} decoded, as when the run began: its row groups are now read in any order, "
            "which is slow; make room in the folder that `byol cache` names",
            stacklevel=3,
        )
    left_out = begun.left_out or begun.left_out_ids
    return source.subset(begun.rows(source)) if left_out else replace(source, blocks=None)


def load_canvases(
    source: ImageSource, canvas: int, advance: Advance | None = None, cache: DecodedCache | None = None
) -> ImageTensor:
    """Decode every image of a source, whole, to a canvas x canvas square for random cropping."""
    return _load_anyhow(source, _canvas(canvas), advance, cache)


def load_preprocessed(
    source: ImageSource, preprocess: Preprocess, cache: DecodedCache | None = None, advance: Advance | None = None
) -> ImageTensor:
    """Decode every image of a source exactly as serving does: resized and centre-cropped."""
    shape = _Shape(preprocess.crop, str(preprocess), lambda image: (preprocess(image), 1.0), preprocess.least_side)
    return _load_anyhow(source, shape, advance, cache)


@dataclass(frozen=True)
class _Shape:
    """What becomes of each image: by `transform` a square of `side`; `least_side`: of which scale, see `read_image`.

    `name` is part of a cache entry's key.
    """

    side: int
    name: str
    transform: Transform
    least_side: int

    def of(self, source: ImageSource) -> tuple[int, int, int, int]:
        """The shape of all images of a source, uint8."""
        return len(source), self.side, self.side, 3


def _canvas(side: int) -> _Shape:
    return _Shape(side, f"canvas {side}", squeeze(side), least_side_of(side))


def _load_anyhow(
    source: ImageSource, shape: _Shape, advance: Advance | None, cache: DecodedCache | None
) -> ImageTensor:
    """Decode a source: through the cache where it can be used and has room, else into memory."""
    if cache is not None:
        try:
            return _held(source, shape, advance, cache)
        except CacheError as error:
            _tell(cache, f"{reason_of(error)}; decoding images for this run only")
    return _in_memory(source, shape, advance)


def _held(source: ImageSource, shape: _Shape, advance: Advance | None, cache: DecodedCache) -> ImageTensor:
    """A decoded source, in memory if it is small or cannot tell whether it changed, else in the cache.

    Raises `CacheError`, also where that has no room for it.
    """
    size = math.prod(shape.of(source))
    if size <= SMALL or source.stamp is None:
        return _in_memory(source, shape, advance)
    if size > cache.limit:
        raise _no_room(source, size, cache)
    words = (CACHE_FORMAT, PIL.__version__, shape.name, source_digest(source), source.stamp())
    key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]
    found = _entry_of(cache, key, source, shape)  # which may take the room that a new one would need
    if (found is None or any(_readable_now(source, found))) and cache.has_room(size):
        found = _made(cache, key, source, shape, advance)
    if found is None:
        raise _no_room(source, size, cache)
    return found


def _no_room(source: ImageSource, size: int, cache: DecodedCache) -> CacheError:
    room = f"{printable(cache.root)} has room for {gigabytes(cache.room())} (BYOL_CACHE_GB, half of the free disk)"
    return CacheError(f"{source.name} takes {gigabytes(size)} decoded, {room}")


def _in_memory(source: ImageSource, shape: _Shape, advance: Advance | None) -> ImageTensor:
    pixels = np.empty(shape.of(source), np.uint8)
    return image_tensor(pixels, *_decode_into(pixels, source, shape, advance))


def _entry_of(cache: DecodedCache, key: str, source: ImageSource, shape: _Shape) -> ImageTensor | None:
    entry = cache.find(key)
    return read_entry(entry, shape.of(source)) if entry else None


def _made(cache: DecodedCache, key: str, source: ImageSource, shape: _Shape, advance: Advance | None) -> ImageTensor:
    """A new entry, in place of a damaged or outdated one. Raises `CacheError` when that fails."""
    cache.drop(key)
    with cache.create(key, math.prod(shape.of(source))) as folder:
        _write_entry(cache, folder, source, shape, advance)
    found = _entry_of(cache, key, source, shape)
    if found is None:
        raise CacheError(f"{printable(cache.root / key)} cannot be read back; run `byol cache clear`")
    return found


def _decode_into(
    pixels: np.ndarray, source: ImageSource, shape: _Shape, advance: Advance | None
) -> tuple[np.ndarray, np.ndarray, list[Skipped], Several]:
    """Fill the first rows of `pixels` with the readable images: their aspects, indices, what was left out, and which
    are the first of several pictures.

    Raises `ValueError` when no image can be read.
    """
    aspect = np.empty(len(source), np.float32)
    indices = np.empty(len(source), np.int64)
    count = 0
    skipped, several = list(source.skipped), list[int]()
    for index, result in decode(source, _counting(shape.transform, advance), least_side=shape.least_side):
        if isinstance(result, UnreadableImage):
            skipped.append(Skipped(source.ids[index], str(result)))
            if advance is not None:
                advance(1)
        else:
            (pixels[count], aspect[count]), is_first = result
            indices[count] = index
            several.extend([index] if is_first else [])
            count += 1
    if not count:
        raise ValueError(none_readable(source, len(source), skipped))
    return aspect[:count], indices[:count], skipped, Several.of(source.ids, several)


def _counting(
    transform: Transform, advance: Advance | None
) -> Callable[[Image.Image], tuple[tuple[np.ndarray, float], bool]]:
    """The same, and whether the image is the first of several, counted as each is done: chunks may take long."""

    def counted(image: Image.Image) -> tuple[tuple[np.ndarray, float], bool]:
        result = transform(image), is_first_of_several(image)
        if advance is not None:
            advance(1)
        return result

    return counted


# ---------------------------------------------------------------------------------------------- cache entries


def _write_entry(
    cache: DecodedCache, folder: Path, source: ImageSource, shape: _Shape, advance: Advance | None
) -> None:
    """Decode a source into a new entry. Raises `CacheError`."""
    pixels = new_pixels(cache, folder, shape.of(source))
    aspect, indices, skipped, several = _decode_into(pixels, source, shape, advance)
    listed = len(source.skipped)
    meta = {
        "name": Path(source.name).name,
        "listed": [vars(item) for item in skipped[:listed]],
        "unreadable": [vars(item) for item in skipped[listed:]],
        SEVERAL: several.values(),
    }
    write_rest(cache, folder, pixels, aspect, indices, meta)


def _readable_now(source: ImageSource, found: ImageTensor) -> list[bool]:
    """Whether formerly unreadable images can be read now (a file's stamp does not cover its permissions)."""

    def readable(row: int) -> bool:
        try:
            source.open(row)
        except UnreadableImage:
            return False
        return True

    return [readable(row) for row in found.unreadable(source)]


# ------------------------------------------------------------------------------------------------- the source


def canvas_side(source: ImageSource, image_size: int) -> int:
    """A canvas that keeps all detail a view can show: 8/7 of the view, at most the size of the images.

    Probes some images spread over the source.
    """
    wanted = math.ceil(image_size * MARGIN / 8) * 8
    probes = source.subset(spread(len(source), LOOKED_INTO))
    seen = decode(probes, lambda image: max(image.size), least_side=wanted)
    sides = [side for _, side in seen if isinstance(side, int)]
    return min(wanted, max(sides, default=wanted))


def source_digest(source: ImageSource) -> str:
    """A digest of the list of images: tells whether a resumed run sees the same data."""
    digest = hashlib.sha256()
    for start in range(0, len(source), CHUNK):
        digest.update(("\n".join(source.ids[start : start + CHUNK]) + "\n").encode())
    return digest.hexdigest()[:16]
