"""Disk blocks for a file that will be mapped. Torch-free."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 24  # bytes written at a time
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def reserve(path: Path) -> None:
    """Reserve the disk blocks of a sparse file. Raises `OSError` when the disk is full.

    Otherwise a mapped page without room would kill the process (SIGBUS).
    """
    with open(path, "r+b") as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # macOS and some file systems lack it
            if isinstance(error, OSError) and error.errno not in _NO_FALLOCATE:
                raise
            _fill(stream, size)


def _fill(stream: BinaryIO, size: int) -> None:
    """Write the file's content (a header, then zeros) over itself."""
    for start in range(0, size, CHUNK):
        stream.seek(start)
        content = stream.read(min(CHUNK, size - start))
        stream.seek(start)
        stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())  # some file systems allocate only now
