"""Decoded training images: in memory, mapped from the cache, or decoded as they are needed.

Legend: N images, B batch, M canvas pixels, S view pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from byol.budget import PIXELS
from byol.cache import ARRAYS, META, CacheError, DecodedCache, Entry, reserve
from byol.images import ImageSource, Preprocess, Skipped, UnreadableImage, decode, usable_cores
from byol.text import printable

SMALL = 16 << 20  # bytes: fewer decoded images are held in memory and not cached, decoding them takes no time
CHUNK = 65_536  # names hashed at a time
CACHE_FORMAT = "2"  # changes with anything that makes the same file decode to other pixels

Advance = Callable[[int], None]
Transform = Callable[[Image.Image], tuple[np.ndarray, float]]


@dataclass(frozen=True)
class ImageTensor:
    """Decoded images.

    `pixels`  uint8 (N, M, M, 3), in memory or mapped from a file
    `aspect`  float32 (N,) width / height of the original: a canvas holds the whole picture, stretched to a square,
              and the crop of a view undoes the stretching
    `indices` int64 (N,) where each row stands in its source (rows of unreadable images are absent)
    `skipped` the unreadable images
    """

    pixels: Tensor
    aspect: Tensor
    indices: np.ndarray
    skipped: list[Skipped]

    def __len__(self) -> int:
        return len(self.indices)


class StreamedImages:
    """Images decoded each time they are needed, for sources larger than memory and cache.

    A row is the image's place in its source. `skipped` lists the unreadable ones met so far.
    """

    def __init__(self, source: ImageSource, canvas: int):
        self.source, self.canvas = source, canvas
        self._unreadable: dict[int, str] = {}
        self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="stream")

    def __len__(self) -> int:
        return len(self.source)

    @property
    def skipped(self) -> list[Skipped]:
        """What was unreadable so far, the listing's own first."""
        met = [Skipped(self.source.ids[row], reason) for row, reason in sorted(self._unreadable.items())]
        return [*self.source.skipped, *met]

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Canvases uint8 (B, M, M, 3) and aspects (B,) of some rows.

        In the place of an unreadable image stands the next readable one of the batch, so that every batch is full.
        Raises `ValueError` when there is none, and `SourceUnavailable`.
        """
        pixels = np.empty((len(rows), self.canvas, self.canvas, 3), np.uint8)
        aspect = np.empty(len(rows), np.float32)
        transform = _squeeze(self.canvas)

        def one(place: int, row: int) -> bool:
            try:
                with PIXELS:
                    pixels[place], aspect[place] = transform(self.source.open(row))
            except UnreadableImage as error:
                self._unreadable[row] = str(error)
                return False
            return True

        good = np.array(list(self._pool.map(one, range(len(rows)), rows.tolist())))
        readable = np.flatnonzero(good)
        if not len(readable):
            raise ValueError(_none_readable(self.source, len(rows), self.skipped))
        bad = np.flatnonzero(~good)
        instead = readable[np.searchsorted(readable, bad) % len(readable)]
        pixels[bad], aspect[bad] = pixels[instead], aspect[instead]
        return torch.from_numpy(pixels), torch.from_numpy(aspect)


def open_images(
    source: ImageSource, canvas: int, advance: Advance | None = None, cache: DecodedCache | None = None
) -> ImageTensor | StreamedImages:
    """The images of a source for training: decoded, where they fit into the cache, else streamed."""
    cache = cache or DecodedCache()
    size = len(source) * canvas * canvas * 3
    try:
        if size > SMALL and not cache.has_room(size):
            return StreamedImages(source, canvas)
        return _load(source, canvas, f"canvas {canvas}", _squeeze(canvas), advance, cache)
    except CacheError as error:
        warnings.warn(f"{error}; images are decoded for each batch", stacklevel=2)
        return StreamedImages(source, canvas)


def load_canvases(
    source: ImageSource, canvas: int, advance: Advance | None = None, cache: DecodedCache | None = None
) -> ImageTensor:
    """Decode every image of a source, whole, to a canvas x canvas square for random cropping."""
    return _load_anyhow(source, canvas, f"canvas {canvas}", _squeeze(canvas), advance, cache)


def load_evaluation(source: ImageSource, preprocess: Preprocess, cache: DecodedCache | None = None) -> ImageTensor:
    """Decode every image of a source exactly as serving does: resized and centre-cropped."""
    return _load_anyhow(source, preprocess.crop, str(preprocess), lambda image: (preprocess(image), 1.0), None, cache)


def _squeeze(canvas: int) -> Transform:
    size = (canvas, canvas)

    def squeeze(image: Image.Image) -> tuple[np.ndarray, float]:
        square = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(square), image.width / image.height

    return squeeze


def _load_anyhow(
    source: ImageSource,
    side: int,
    what: str,
    transform: Transform,
    advance: Advance | None,
    cache: DecodedCache | None,
) -> ImageTensor:
    """`_load`, without the cache where that cannot be used."""
    try:
        return _load(source, side, what, transform, advance, cache)
    except CacheError as error:
        warnings.warn(f"{error}; the images are decoded for this run alone", stacklevel=2)
        return _load(source, side, what, transform, advance, None)


def _load(
    source: ImageSource,
    side: int,
    what: str,
    transform: Transform,
    advance: Advance | None,
    cache: DecodedCache | None,
) -> ImageTensor:
    """Decode a source, through the cache where one is given and the source can tell whether it changed.

    Raises `CacheError`.
    """
    shape = (len(source), side, side, 3)
    size = int(np.prod(shape, dtype=np.int64))
    if cache is not None and source.stamp is not None and size > SMALL and cache.has_room(size):
        return _load_kept(source, shape, what, transform, advance, cache)
    pixels = np.empty(shape, np.uint8)
    return _image_tensor(pixels, *_decode_into(pixels, source, transform, advance))


def _load_kept(
    source: ImageSource,
    shape: tuple[int, ...],
    what: str,
    transform: Transform,
    advance: Advance | None,
    cache: DecodedCache,
) -> ImageTensor:
    """The entry of the cache, made where there is none. Raises `CacheError` when that cannot be done."""
    assert source.stamp is not None  # else there is no key
    words = (CACHE_FORMAT, PIL.__version__, what, source_digest(source), source.stamp())
    key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]
    entry = cache.find(key)
    found = _read_entry(entry, shape) if entry else None
    if found is None or any(_readable_now(source, found.skipped)):
        cache.drop(key)
        with cache.create(key, math.prod(shape)) as folder:
            _write_entry(cache, folder, shape, source, transform, advance)
        entry = cache.find(key)
        found = _read_entry(entry, shape) if entry else None
    if found is None:
        raise CacheError(f"{printable(cache.root / key)} cannot be read back; clear it by `byol cache clear`")
    return found


def _decode_into(
    pixels: np.ndarray, source: ImageSource, transform: Transform, advance: Advance | None
) -> tuple[np.ndarray, np.ndarray, list[Skipped]]:
    """Fill the first rows of `pixels` with the readable images: their aspects, indices, and what was left out.

    Raises `ValueError` when no image can be read.
    """
    aspect = np.empty(len(source), np.float32)
    indices = np.empty(len(source), np.int64)
    count = 0
    skipped = list(source.skipped)
    for index, result in decode(source, transform):
        if isinstance(result, UnreadableImage):
            skipped.append(Skipped(source.ids[index], str(result)))
        else:
            pixels[count], aspect[count] = result
            indices[count] = index
            count += 1
        if advance is not None:
            advance(1)
    if not count:
        raise ValueError(_none_readable(source, len(source), skipped))
    return aspect[:count], indices[:count], skipped


def _none_readable(source: ImageSource, count: int, skipped: list[Skipped]) -> str:
    reasons = "; ".join(f"{printable(item.path)}: {item.reason}" for item in skipped[:5])
    return f"{source.name}: none of {count} images can be read ({reasons})"


def _image_tensor(pixels: np.ndarray, aspect: np.ndarray, indices: np.ndarray, skipped: list[Skipped]) -> ImageTensor:
    return ImageTensor(torch.from_numpy(pixels[: len(indices)]), torch.from_numpy(aspect), indices, skipped)


# ---------------------------------------------------------------------------------------------- cache entries


def _write_entry(
    cache: DecodedCache,
    folder: Path,
    shape: tuple[int, ...],
    source: ImageSource,
    transform: Transform,
    advance: Advance | None,
) -> None:
    """Write `pixels.npy`, `aspect.npy`, `indices.npy` and `meta.json`; rows of unreadable images stay unused."""
    with cache.failing_alone():
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
        reserve(folder / "pixels.npy")
    aspect, indices, skipped = _decode_into(pixels, source, transform, advance)
    listed = len(source.skipped)
    meta: dict[str, Any] = {
        "name": Path(source.name).name,
        "images": len(indices),
        "shape": shape,
        "listed": [vars(item) for item in skipped[:listed]],
        "unreadable": [vars(item) for item in skipped[listed:]],
    }
    with cache.failing_alone():
        pixels.flush()
        np.save(folder / "aspect.npy", aspect, allow_pickle=False)
        np.save(folder / "indices.npy", indices, allow_pickle=False)
        (folder / META).write_text(json.dumps(meta))


def _read_entry(entry: Entry, shape: tuple[int, ...]) -> ImageTensor | None:
    """An entry's images, mapped; None when its files are damaged, or say something else than they should."""
    images, meta = entry.meta["images"], entry.meta
    kinds, sizes = (np.uint8, np.float32, np.int64), (shape, (images,), (images,))
    arrays = []
    for name, kind, size in zip(ARRAYS, kinds, sizes, strict=True):
        try:  # copy on write: nobody writes, and torch wants arrays it could write to
            array = np.load(entry.path / name, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError):
            return None
        if array.dtype != kind or array.shape != size:
            return None
        arrays.append(array)
    pixels, aspect, indices = arrays[0], *(np.array(array) for array in arrays[1:])
    if images and not 0 <= indices.min() <= indices.max() < shape[0]:
        return None
    skipped = [Skipped(**item) for item in [*meta["listed"], *meta["unreadable"]]]
    return _image_tensor(pixels, aspect, indices, skipped)


def _readable_now(source: ImageSource, skipped: list[Skipped]) -> list[bool]:
    """Whether images that were unreadable can be read now (a file's permissions leave no trace in its stamp)."""
    paths = {item.path for item in skipped}
    if not paths:
        return []
    rows = [i for i, identity in enumerate(source.ids) if identity in paths]

    def readable(row: int) -> bool:
        try:
            source.open(row)
        except UnreadableImage:
            return False
        return True

    return [readable(row) for row in rows]


# ------------------------------------------------------------------------------------------------- the source


def canvas_side(source: ImageSource, image_size: int, probes: int = 64) -> int:
    """A canvas that keeps the detail a view can show: 8/7 of the view, but no more than the images have.

    Looks at `probes` images spread over the source.
    """
    wanted = -(-image_size * 8 // 7 // 8) * 8  # rounded up to a multiple of 8
    sides = []
    for index in np.linspace(0, len(source) - 1, min(probes, len(source)), dtype=int):
        try:
            sides.append(max(source.open(int(index)).size))
        except UnreadableImage:
            continue
    return min(wanted, max(sides, default=wanted))


def source_digest(source: ImageSource) -> str:
    """A digest of the list of images: tells whether a resumed run sees the same data."""
    digest = hashlib.sha256()
    for start in range(0, len(source), CHUNK):
        digest.update(("\n".join(source.ids[start : start + CHUNK]) + "\n").encode())
    return digest.hexdigest()[:16]
