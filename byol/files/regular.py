"""Reads of regular files only: opening a pipe would block, and a link may lead anywhere. Torch-free."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import BinaryIO

NO_FILE = "not a regular file"
A_LINK = "a symbolic link; replace it with the file itself"


class SourceUnavailable(ValueError):
    """The images cannot be reached (any longer): no image is at fault, and none may be left out for it.

    The work stops. Finished work is kept, and the same command resumes once the images can be reached again.
    """


def open_regular(path: str | bytes | os.PathLike[str], follow: bool = True) -> BinaryIO:
    """Open a regular file for reading, and nothing else: opening a pipe would block.

    `follow` allows symbolic links: right for a path that the user gave, wrong in a stranger's folder. Raises `OSError`.
    """
    seen = os.stat(path, follow_symlinks=follow)
    if stat.S_ISLNK(seen.st_mode):
        raise OSError(errno.ELOOP, A_LINK, path)
    if not stat.S_ISREG(seen.st_mode):
        raise OSError(errno.EINVAL, NO_FILE, path)
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK"))
    descriptor = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    stream = open(descriptor, "rb")  # noqa: SIM115 - closed by the caller
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # replaced since it was checked
        stream.close()
        raise OSError(errno.EINVAL, NO_FILE, path)
    return stream


def read_regular(path: str | bytes | os.PathLike[str], most: int, follow: bool = True) -> bytes:
    """The content of a regular file of at most `most` bytes (see `open_regular`). Raises `OSError`."""
    with open_regular(path, follow) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(min(size, most) + 1)  # read() allocates this much at once
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", path)
    return content


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
