"""The shards of a folder; each must stay the file that was listed. Torch-free."""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from byol.files.regular import SourceUnavailable, open_regular
from byol.images.remote.path import RemotePath
from byol.images.source import Skipped
from byol.images.surroundings import GO_ON, Anchors
from byol.images.walk import Walk, folded
from byol.text import path_text, printable, reason_of

AnyPath = Path | RemotePath
_TARS = (b".tar.gz", b".tgz", b".tar.bz2", b".tbz2", b".tar.xz", b".txz", b".tar.zst", b".tar.lz4")
PACKED = (*_TARS, b".zip", b".7z", b".rar")
PACKED_REASON = "a compressed archive has no random access; unpack it to a folder or to .tar"
# Why a shard may be left out of a listing; whatever else stops its opening is no fault of the file.
_ITS_OWN = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EINVAL}


def shards_below(root: AnyPath, suffixes: Container[str]) -> tuple[Sequence[AnyPath], list[Skipped]]:
    """The files below a folder, local or remote, that end in a suffix, in any case; and what is left out of them.

    Hidden files and folders do not count; links are followed as those to images are.
    """
    if isinstance(root, RemotePath):
        return root.files_below(suffixes), []
    skipped = list[Skipped]()

    def judge(name: bytes) -> str | None:
        is_shard = os.path.splitext(os.fsdecode(name))[1].lower() in suffixes
        return "" if is_shard else PACKED_REASON if is_packed(name) else None

    start = os.fsencode(root)
    walk = Walk(start, Anchors(start), lambda path, reason: skipped.append(Skipped(path_text(path), reason)), judge)
    return [Path(os.fsdecode(os.path.join(start, path))) for path in walk.paths()], folded(skipped)


def is_packed(name: bytes) -> bool:
    """Whether a file's name is that of a compressed archive."""
    return name.lower().endswith(PACKED)


def open_file(path: AnyPath) -> BinaryIO:
    """Open a file for reading; a local one only if it is a regular file. Raises `OSError`."""
    return path.open("rb") if isinstance(path, RemotePath) else open_regular(path)


class Shard:
    """A file of a listing, local or remote. Once it is listed, a local one must stay what it is."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.is_remote = isinstance(path, RemotePath)  # with rules of its own: see `byol.images.remote.faults`
        self._listed: tuple[int, ...] = ()

    @contextmanager
    def listing(self) -> Iterator[BinaryIO]:
        """The open file, whose identity is kept.

        Raises `OSError` if it is not a readable file, `SourceUnavailable` when the system fails.
        """
        try:
            stream = open_file(self.path)
        except OSError as error:
            if self.is_remote or error.errno in _ITS_OWN:
                raise
            raise self._lost(error) from error
        with stream:
            if not self.is_remote:
                self._listed = _identity(stream)
            with self._guarded(stream):
                yield stream

    @contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """The open file again. Damage that the block finds is raised as it is.

        Raises `SourceUnavailable` when the file is gone, not the one that was listed, or when the system fails.
        """
        if isinstance(self.path, RemotePath):
            with self.path.open_parts() as stream:
                yield stream
            return
        try:
            stream = open_file(self.path)
        except OSError as error:
            raise self._lost(error) from error
        with stream, self._guarded(stream):
            yield stream

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes of it; of a remote file only these are asked for. Raises as `reading`."""
        if isinstance(self.path, RemotePath):
            return self.path.read_range(offset, size)
        with self.reading() as stream:
            stream.seek(offset)
            return stream.read(size)

    @contextmanager
    def _guarded(self, stream: BinaryIO) -> Iterator[None]:
        """Blame the shard, not an image, when the file has changed or the system reports an error."""
        if self.is_remote:
            yield
            return
        self._require_same(stream)
        try:
            yield
        except SourceUnavailable:
            raise
        except Exception as error:
            self._require_same(stream)
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
                raise self._lost(error) from error
            raise

    def _require_same(self, stream: BinaryIO) -> None:
        try:
            now = _identity(stream)
        except OSError as error:
            raise self._lost(error) from error
        if now != self._listed:
            raise self._lost("it was replaced or changed since it was listed")

    def _lost(self, reason: Exception | str) -> SourceUnavailable:
        text = reason if isinstance(reason, str) else reason_of(reason)
        return SourceUnavailable(f"{printable(str(self.path))} cannot be read: {text}; {GO_ON}")


def _identity(stream: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(stream.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
