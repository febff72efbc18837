"""Files and folders: atomic writes, so that what bears its final name is whole; regular files only. Torch-free."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from byol.locks import only_writer
from byol.names import leftovers_of, new_name

NO_FILE = "not a regular file"
A_LINK = "a symbolic link; put the file itself there"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; after the block its content is synced to disk and takes the final name.

    Behind a link, that is the name of what it points to, and the link stays. When the block raises, the temporary file
    is removed and whatever stood under `path` stays as it was. Raises `BlockingIOError` while another process writes
    the same file, and `OSError` where a pipe, a device or a folder stands.
    """
    final = behind_links(path)
    with only_writer(final) as alone:
        for leftover in leftovers_of(final, ".tmp") if alone else ():
            remove(leftover)
        temporary = final.with_name(new_name(final.name, ".tmp"))
        mode = _create(temporary)
        try:
            yield temporary
            _publish(temporary, mode)
            os.replace(temporary, final)
            sync(final.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The same for a folder: an old one is replaced only once the new one is whole; behind a link, what it points to.

    A kill between the two renames at the end leaves the old one as `.NAME.byol-XXXXXXXXXXXXXXXX.old`.
    """
    final = Path(path).resolve()
    temporary, old = (final.with_name(new_name(final.name, ending)) for ending in (".tmp", ".old"))
    final.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(final) as alone:
        for leftover in leftovers_of(final, ".tmp") if alone else ():
            remove(leftover)
        temporary.mkdir()
        mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
        try:
            yield temporary
            for entry in temporary.rglob("*"):
                if entry.is_dir():
                    sync(entry)
                else:
                    _publish(entry, mode)
            if final.exists():
                os.replace(final, old)
            os.replace(temporary, final)
            sync(final.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not final.exists():
                os.replace(old, final)
            raise
        for replaced in leftovers_of(final, ".old") if alone else (old,):
            remove(replaced)


def behind_links(path: str | os.PathLike[str]) -> Path:
    """Where a file written to `path` comes to lie. Raises `OSError` where links lead nowhere, or to no file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, NO_FILE, os.fspath(path))
    return Path(os.path.realpath(path))


def _create(path: Path) -> int:
    """Make a new, empty file, behind no link and in the place of nothing; the permissions that new files get."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def require_folder_place(path: Path) -> None:
    """Raise `ValueError` when `atomic_folder` could not put a folder at `path`; before work that would be lost."""
    final = path.resolve()
    if final.exists() and not final.is_dir():
        raise ValueError(f"{path} is a file; name a folder")
    if Path.cwd().is_relative_to(final):
        raise ValueError(f"{path} is the folder that this runs in, which cannot be replaced; name a folder in it")
    if os.path.ismount(final):
        raise ValueError(f"{path} is a mount point, which cannot be replaced; name a folder in it")
    parent, writable = writable_above(final)
    if not writable:
        raise ValueError(f"{path} cannot be made: {parent} is no folder that can be written to")


def writable_above(path: Path) -> tuple[Path, bool]:
    """The lowest folder above `path` that is there, and whether anything can be made in it."""
    parent = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    return parent, parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)


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


def _publish(path: Path, mode: int) -> None:
    """Give a new file the usual permissions (some writers create private ones), then sync it."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    try:
        os.chmod(descriptor if os.chmod in os.supports_fd else path, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
