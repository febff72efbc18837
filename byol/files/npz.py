"""Arrays of an `.npz` from a stranger: sizes are checked before anything is read. Torch-free.

Stricter than `numpy.load`: no objects, and an array has exactly the bytes that its header states.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

import numpy as np

from byol.files.regular import SourceUnavailable
from byol.files.zips import open_zip
from byol.text import reason_of

KINDS = "biufcSU"  # of numbers and text
READ = 1 << 20  # bytes at a time
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Arrays:
    """The arrays of an open `.npz`, each read on demand."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def read(self, name: str) -> np.ndarray:
        """One array. Raises `ValueError` when it is damaged, holds objects, or is none of `names`."""
        if name not in self.names:
            raise ValueError(f"it has no array `{name}`")
        with _naming(name), self._archive.open(f"{name}.npy") as entry:
            size = self._archive.getinfo(f"{name}.npy").file_size
            shape, by_columns, dtype = _header(entry)
            _require_plain(shape, dtype, size - entry.tell())
            array = np.empty(math.prod(shape), dtype)
            _fill(array.view(np.uint8), entry)
            _require_text(array)
            return array.reshape(shape[::-1]).T if by_columns else array.reshape(shape)


@contextmanager
def open_arrays(stream: BinaryIO) -> Iterator[Arrays]:
    """The arrays in an open `.npz`. Raises `ValueError` when it is none (see `byol.files.zips.open_zip`)."""
    with open_zip(stream) as archive:
        yield Arrays(archive)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, MemoryError, SourceUnavailable):
        raise
    except Exception as error:  # zipfile, zlib and NumPy's reader of headers raise many kinds
        raise ValueError(f"its array `{name:.80}` {reason_of(error)}") from error


def _header(entry: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(entry)
    if version not in _HEADERS:
        raise ValueError(f"has a header of unknown version {version}")
    return _HEADERS[version](entry)


def _require_plain(shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    if dtype.hasobject:
        raise ValueError("holds Python objects; save text or numbers")
    if dtype.kind not in KINDS or dtype.itemsize == 0:
        raise ValueError(f"is of type {dtype!s:.80}; save text or numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"with shape {shape!s:.80} and type {dtype} cannot have {size:,} bytes")


def _require_text(array: np.ndarray) -> None:
    """NumPy accepts any number as a character; Python and Arrow do not."""
    if array.dtype.kind == "U":
        codes = array.view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if ((codes > 0x10FFFF) | (codes >> 11 == 0x1B)).any():  # the latter are halves of UTF-16 pairs
            raise ValueError("holds invalid characters")


def _fill(content: np.ndarray, entry: IO[bytes]) -> None:
    place = 0
    while found := entry.read(min(READ, len(content) - place) or 1):  # a last time for the check sum
        content[place : place + len(found)] = np.frombuffer(found, np.uint8)
        place += len(found)
    if place < len(content):
        raise ValueError("is cut off")
