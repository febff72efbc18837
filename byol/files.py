"""Atomic writes: a file under its final name is always whole. Torch-free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; after the block its content is synced to disk and takes the final name.

    When the block raises, the temporary file is removed and whatever stood under `path` stays as it was.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        yield temporary
        _publish(temporary)
        os.replace(temporary, final)
        sync(final.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The same for a folder: an old one under `path` is replaced only once the new one is whole."""
    final = Path(path)
    temporary, old = final.with_name(f".{final.name}.tmp"), final.with_name(f".{final.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for entry in temporary.rglob("*"):
            if entry.is_file():
                _publish(entry)
            else:
                sync(entry)
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)
        os.replace(temporary, final)
        sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not final.exists():
            os.replace(old, final)
        raise


def _publish(path: Path) -> None:
    """Give a new file the usual permissions (some writers create private ones), then sync it."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    sync(path)


def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
