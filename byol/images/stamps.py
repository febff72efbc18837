"""Digests that tell whether files have changed, without reading them whole. Torch-free.

A stamp changes when a file is written to; a content digest ignores times, so a copy has the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from byol.images.columns import Names
from byol.images.shards.listing import open_file
from byol.images.surroundings import Anchors

PROBE = 65_536  # bytes read at the start and at the end of a file
LOOKED_INTO = 64  # images of a listing whose content is read
SIZES = 16_384  # images of a listing whose sizes a content digest covers: a stamp covers all
CHUNK = 65_536  # names held as Python objects at a time
MOST_TIME = 1 << 63  # ns since 1970, the year 2262: what an int64 holds, and not all that a file system does


def content_stamp(path: Path) -> bytes:
    """A digest of the first and the last 64 KiB of a file. Raises `OSError`."""
    digest = hashlib.sha256()
    with open_file(path) as file:  # a pipe would block
        digest.update(file.read(PROBE))
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - PROBE))
        digest.update(file.read(PROBE))
    return digest.digest()


def file_stamp(paths: Iterable[Path], times: bool = True) -> str:
    """A digest of large files: size, content at both ends, and `times` of modification. Raises `OSError`."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        facts = f"{status.st_size} {status.st_mtime_ns} " if times else f"{status.st_size} "
        digest.update(facts.encode() + content_stamp(path))
    return digest.hexdigest()


def spread(count: int, most: int) -> np.ndarray:
    """Places (int64) spread evenly over `count`, at most `most` of them."""
    return np.linspace(0, count - 1, min(most, count), dtype=np.int64)


class ListedFiles:
    """The files of a listing; `path_of` makes a name's path. Methods raise `SourceUnavailable` where `anchors` do."""

    def __init__(self, names: Names, path_of: Callable[[bytes], bytes], anchors: Anchors) -> None:
        self._names, self._path_of, self._anchors = names, path_of, anchors

    def stamp(self) -> str:
        """Size and time of every file, and some content: names and sizes alone may be the same for other images."""
        digest = hashlib.sha256()
        for start in range(0, len(self._names), CHUNK):
            chunk = self._names.raw[start : start + CHUNK].to_pylist()
            digest.update(np.array([self._size_and_time(raw) for raw in chunk], "<i8").tobytes())
        self._look_into(digest)
        return digest.hexdigest()

    def content(self) -> str:
        """The same without times, and of a long listing with the sizes of a part."""
        digest = hashlib.sha256()
        names = (self._names.raw[i].as_py() for i in spread(len(self._names), SIZES).tolist())
        digest.update(np.array([self._size_and_time(raw)[0] for raw in names], "<i8").tobytes())
        self._look_into(digest)
        return digest.hexdigest()

    def _look_into(self, digest: hashlib._Hash) -> None:
        for i in spread(len(self._names), LOOKED_INTO).tolist():
            digest.update(self._content(self._names.raw[i].as_py()))

    def _size_and_time(self, name: bytes) -> tuple[int, int]:
        path = self._path_of(name)
        try:
            status = os.stat(path)
        except OSError as error:
            self._anchors.blame(error, path)
            return (-1, -1)
        return status.st_size, status.st_mtime_ns % MOST_TIME

    def _content(self, name: bytes) -> bytes:
        path = self._path_of(name)
        try:
            return content_stamp(Path(os.fsdecode(path)))
        except OSError as error:
            self._anchors.blame(error, path)
            return b""
