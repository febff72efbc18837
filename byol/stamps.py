"""Digests that tell whether files are still the same, without reading all of them. Torch-free."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

PROBE = 65_536  # bytes read at the start and at the end of a file


def content_stamp(path: Path) -> bytes:
    """A digest of the first and the last 64 KiB of a file. Raises `OSError`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(PROBE))
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - PROBE))
        digest.update(file.read(PROBE))
    return digest.digest()


def file_stamp(paths: Iterable[Path]) -> str:
    """A digest of large files: size, modification time, and the content at both ends. Raises `OSError`."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode() + content_stamp(path))
    return digest.hexdigest()
