"""Why a file cannot be read: its own fault, or a fault of the disk, mount, network or machine around it.

An image is left out for its own faults only. For any other the work stops, and the same command resumes it later.
Torch-free.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from byol.files.regular import SourceUnavailable, read_regular
from byol.limits import limit
from byol.text import printable, reason_of

# What may be wrong with one file while its neighbours are readable. Everything else (EIO, ESTALE, ENOTCONN, EMFILE,
# ENOMEM, ...) is never one file's own.
ITS_OWN = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EILSEQ,
        errno.EINVAL,  # not a regular file, or a name that the file system cannot have
        errno.EFBIG,  # larger than the limit
    }
)
GO_ON = "finished work is kept; fix this and run the same command again"


class UnreadableImage(ValueError):
    """One image cannot be used. The message is a reason without the path: the caller knows which image it was."""


class Anchors:
    """Folders as they were when images were found in them: device and inode.

    A missing file is at fault only while the folders above it are the same. When one is gone, or replaced (as by an
    unmount), its whole disk is.
    """

    def __init__(self, *folders: bytes) -> None:
        self._seen: dict[bytes, tuple[int, int] | None] = {}  # None: it was not there
        for folder in folders:
            self.note(folder)

    def note(self, folder: bytes) -> None:
        """Remember a folder as it is now. Raises `SourceUnavailable` when it cannot be read."""
        if folder not in self._seen:
            self._seen[folder] = _identity(folder)

    def expect(self, folder: bytes) -> None:
        """The same for a folder that may be missing now: then it must exist once something in it is not found.

        A path that cannot be a folder (too long, through a file) is ignored: whoever named it is at fault.
        """
        try:
            self.note(folder)
        except SourceUnavailable as error:
            number = getattr(error.__cause__, "errno", None)
            if number == errno.ENOENT or number not in ITS_OWN:
                self._seen[folder] = None

    def note_parents(self, path: bytes) -> None:
        """Remember all folders above a file that was read."""
        for folder in _above(path):
            if folder in self._seen:  # and so are those above it
                return
            self.note(folder)

    def require_same(self, path: bytes) -> None:
        """Raise `SourceUnavailable` when a remembered folder above `path` (or itself) is gone, replaced or empty.

        A mount point is empty before its disk is mounted.
        """
        for folder in (path, *_above(path)):
            if folder not in self._seen:
                continue
            before, now = self._seen[folder], _identity(folder)
            if before not in (None, now):
                raise SourceUnavailable(f"{printable(folder)} is not the same folder as before; {GO_ON}")
            if not _has_entries(folder):
                raise SourceUnavailable(f"{printable(folder)} is empty: is its disk mounted? {GO_ON}")

    def blame(self, error: OSError, path: bytes) -> UnreadableImage:
        """The error as the file's own fault. Raises `SourceUnavailable` when it is not."""
        if error.errno not in ITS_OWN:
            raise unavailable(path, error) from error
        self.require_same(path)
        return UnreadableImage(reason_of(error))


def unavailable(path: str | bytes | os.PathLike[str], error: OSError) -> SourceUnavailable:
    """The error as a fault of what surrounds `path`."""
    return SourceUnavailable(f"{printable(path)} cannot be read: {reason_of(error)}; {GO_ON}")


def read_encoded(path: str | bytes | os.PathLike[str], anchors: Anchors) -> bytes:
    """The whole content of an image file, so that what decoding raises afterwards is the image's own.

    Raises `UnreadableImage`, and `SourceUnavailable`.
    """
    try:
        return read_regular(path, limit("BYOL_MAX_PICTURE_MB") << 20)
    except OSError as error:
        raise anchors.blame(error, os.fsencode(path)) from error


def _above(path: bytes) -> Iterator[bytes]:
    """The folders above a path, the nearest first, as the path itself spells them."""
    folder = os.path.dirname(path)
    while folder and folder != path:
        yield folder
        path, folder = folder, os.path.dirname(folder)


def _identity(folder: bytes) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise unavailable(folder, error) from error
    return status.st_dev, status.st_ino


def _has_entries(folder: bytes) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except PermissionError:  # it may be entered but not listed: nobody can tell that it is empty
        return True
    except OSError as error:
        raise unavailable(folder, error) from error
