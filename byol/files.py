"""Atomic writes: a file under its final name is always whole, and has one writer at a time. Torch-free."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":  # there two writers of one file are not told apart
    import fcntl


NO_FILE = "not a regular file"
A_LINK = "a symbolic link; put the file itself there"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; after the block its content is synced to disk and takes the final name.

    When the block raises, the temporary file is removed and whatever stood under `path` stays as it was. Raises
    `BlockingIOError` while another process writes the same file.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.tmp")
    with only_writer(final):
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
    """The same for a folder: an old one is replaced only once the new one is whole; behind a link, what it points to.

    A kill between the two renames at the end leaves the old one as `.NAME.old`.
    """
    final = Path(path).resolve()
    temporary, old = final.with_name(f".{final.name}.tmp"), final.with_name(f".{final.name}.old")
    final.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(final):
        try:
            remove(temporary)
            temporary.mkdir()
            yield temporary
            for entry in temporary.rglob("*"):
                if entry.is_file():
                    _publish(entry)
                else:
                    sync(entry)
            if final.exists():
                remove(old)
                os.replace(final, old)
            os.replace(temporary, final)
            sync(final.parent)
            remove(old)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not final.exists():
                os.replace(old, final)
            raise


@contextmanager
def only_writer(final: Path, lock: Path | None = None) -> Iterator[None]:
    """Hold the lock of what is written to `final`; it ends with the process, however that ends.

    It is a file beside `final`, or `lock`. Raises `BlockingIOError` while another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    place = lock or final.with_name(f".{final.name}.lock")
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, final)
        while not _is_at(descriptor, place):  # its last holder has removed it meanwhile
            os.close(descriptor)
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
            _lock(descriptor, final)
        try:
            yield
        finally:
            place.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, final: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"another process is writing {final}; wait for it, or choose another place") from None
    except OSError:
        pass  # a file system without locks


def _is_at(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(place))
    except FileNotFoundError:
        return False


def require_folder_place(path: Path) -> None:
    """Raise `ValueError` when `atomic_folder` could not put a folder at `path`; before work that would be lost."""
    final = path.resolve()
    if final.exists() and not final.is_dir():
        raise ValueError(f"{path} is a file; name a folder")
    if Path.cwd().is_relative_to(final):
        raise ValueError(f"{path} is the folder that this runs in, which cannot be replaced; name a folder in it")
    if os.path.ismount(final):
        raise ValueError(f"{path} is a mount point, which cannot be replaced; name a folder in it")
    parent = next(folder for folder in final.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be made: {parent} is no folder that can be written to")


def open_regular(path: str | bytes | os.PathLike[str], follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; nothing else is ever opened, as a pipe would be waited for.

    `follow`: also behind a symbolic link, which is right for a path that the user gave and wrong for a file in a folder
    that came from somebody else. Raises `OSError`.
    """
    seen = os.stat(path, follow_symlinks=follow)
    if stat.S_ISLNK(seen.st_mode):
        raise OSError(errno.ELOOP, A_LINK, path)
    if not stat.S_ISREG(seen.st_mode):
        raise OSError(errno.EINVAL, NO_FILE, path)
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK"))
    descriptor = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    stream = open(descriptor, "rb")  # noqa: SIM115 - closed by the caller
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged since it was looked at
        stream.close()
        raise OSError(errno.EINVAL, NO_FILE, path)
    return stream


def read_regular(path: str | bytes | os.PathLike[str], most: int, follow: bool = True) -> bytes:
    """The content of a regular file of at most `most` bytes (see `open_regular`). Raises `OSError`."""
    with open_regular(path, follow) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(min(size, most) + 1)  # as much memory is taken at once
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", path)
    return content


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
