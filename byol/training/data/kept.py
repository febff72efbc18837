"""An entry of the cache of decoded images: the arrays that are written, and mapped again by every run that needs them.

Legend: N images, M canvas pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from byol.files.space import reserve
from byol.images.cache import ARRAYS, META, SEVERAL, CacheError, DecodedCache, Entry
from byol.images.picture.pages import Several
from byol.images.source import Skipped
from byol.text import printable, reason_of
from byol.training.data.intake import ImageTensor, image_tensor

PIXELS, ASPECT, INDICES = ARRAYS


def new_pixels(cache: DecodedCache, folder: Path, sizes: tuple[int, ...]) -> np.memmap:
    """The uint8 array (N, M, M, 3) of a new entry, its disk space reserved. Raises `CacheError`."""
    with cache.failing_alone():
        pixels = np.lib.format.open_memmap(folder / PIXELS, mode="w+", dtype=np.uint8, shape=sizes)
        reserve(folder / PIXELS)
    return pixels


def write_rest(
    cache: DecodedCache,
    folder: Path,
    pixels: np.memmap,
    aspect: np.ndarray,
    indices: np.ndarray,
    meta: dict[str, Any],
) -> None:
    """Write what belongs to the pixels of a new entry; rows of unreadable images stay unused. Raises `CacheError`."""
    with cache.failing_alone():
        pixels.flush()
        np.save(folder / ASPECT, aspect, allow_pickle=False)
        np.save(folder / INDICES, indices, allow_pickle=False)
        (folder / META).write_text(json.dumps({**meta, "images": len(indices), "shape": pixels.shape}))


def read_entry(entry: Entry, shape: tuple[int, ...]) -> ImageTensor | None:
    """An entry's images, mapped; None when its files are damaged or do not agree.

    Raises `CacheError` when they cannot be mapped for another reason: the entry may be sound.
    """
    count, meta = entry.meta["images"], entry.meta
    kinds, sizes = (np.uint8, np.float32, np.int64), (shape, (count,), (count,))
    arrays = list[np.ndarray]()
    for name, kind, size in zip(ARRAYS, kinds, sizes, strict=True):
        array = _mapped(entry.path / name)
        if array is None or array.dtype != kind or array.shape != size:
            return None
        arrays.append(array)
    pixels, aspect, indices = arrays[0], *(np.array(array) for array in arrays[1:])
    if len(meta["unreadable"]) != shape[0] - count:
        return None
    if count and not 0 <= indices.min() <= indices.max() < shape[0]:
        return None
    skipped = [Skipped(**item) for item in [*meta["listed"], *meta["unreadable"]]]
    return image_tensor(pixels, aspect, indices, skipped, Several.read(meta.get(SEVERAL)))


def _mapped(path: Path) -> np.memmap | None:
    """A file's array, read only: of a mapping that may be written to, Linux wants the whole size as free memory."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:  # no memory, no more open files, a failing disk
        raise CacheError(error.errno, f"{printable(path)} cannot be mapped: {reason_of(error)}") from error
