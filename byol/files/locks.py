"""One writer at a time: a lock that ends with its process, however that ends. Torch-free."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from byol.files.names import hidden_name

if sys.platform != "win32":  # Windows has no lock: two writers of one file are not kept apart
    import fcntl

LOCK = ".lock"  # of a folder, in it


@contextmanager
def only_writer(final: Path, lock: Path | None = None) -> Iterator[bool]:
    """Hold the lock for writing `final`; yields whether it is held, as some file systems have no locks.

    The lock is an empty file, `lock` or one beside `final`; its holder removes it. Raises `BlockingIOError` while
    another process holds it, and `OSError` when a link, or anything but a file, has its name. Of a lock that another
    user's killed process left it is enough that it can be read; else `PermissionError` names it.
    """
    if sys.platform == "win32":
        yield False
        return
    place = lock or final.with_name(hidden_name(final.name, ".lock"))
    descriptor = _open(place)
    try:
        held = _lock(descriptor, place, final)
        while held and not _is_at(descriptor, place):  # its last holder has removed it in between
            following = _open(place)
            os.close(descriptor)
            descriptor = following
            held = _lock(descriptor, place, final)
        try:
            yield held
        finally:
            with suppress(OSError):  # one with content is somebody's: it bears our lock and nothing more
                if os.fstat(descriptor).st_size == 0 and _is_at(descriptor, place):
                    place.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def only_writer_in(folder: Path) -> Iterator[bool]:
    """The same for an existing folder. Its lock lies inside, as the parent folder may not be writable."""
    with only_writer(folder, folder / LOCK) as held:
        yield held


def _open(place: Path) -> int:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | flags, 0o666)
        except PermissionError:
            if not os.path.lexists(place):
                raise
            descriptor = os.open(place, os.O_RDONLY | flags)  # local disks lock it all the same
    except OSError as error:
        if place.is_symlink() or (place.exists() and not place.is_file()):
            raise OSError(f"{place} is in the way: byol keeps a lock under this name; move it away") from error
        if isinstance(error, PermissionError) and os.path.lexists(place):
            raise _of_another(place) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{place} is in the way: byol keeps a lock under this name; move it away")
    return descriptor


def _of_another(place: Path) -> PermissionError:
    return PermissionError(f"{place} is another user's lock; remove it if no process of that user writes there")


def _lock(descriptor: int, place: Path, final: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"another process is writing {final}; wait for it, or choose another place") from None
    except OSError as error:  # a file system without locks
        if error.errno == errno.EBADF:  # one with locks (NFS), but not for whom may only read: it may be held
            raise _of_another(place) from error
        return False
    return True


def _is_at(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(place))
    except FileNotFoundError:
        return False
