"""Atomic writes, so that whatever has its final name is complete. Torch-free."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from byol.files.locks import LOCK, only_writer, only_writer_in
from byol.files.names import is_of_a_browser, is_of_the_system, leftovers_of, new_name
from byol.files.places import behind_links, must_stay
from byol.text import printable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SYNCED = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY  # Windows syncs only what may be written


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block it is synced to disk and renamed to `path`.

    A link stays, and its target is replaced. When the block raises, the temporary file is removed and `path` stays
    unchanged. Raises `BlockingIOError` while another process writes
    the same file, and `OSError` if `path` is a pipe, a device or a folder.
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
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            _say_where(error, final)
            raise


def _say_where(error: BaseException, path: Path) -> None:
    """Add the path to a disk-full error; errors of open files lack it."""
    if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
        error.filename = os.fspath(path)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """The same for a folder: an old one is replaced only once the new one is complete.

    A kill between the two renames at the end leaves the old one as `.NAME.byol-XXXXXXXXXXXXXXXX.old`. A folder that
    must stay (see `must_stay`) is filled instead: its files are replaced one by one, and `last`, the file by which
    readers recognise it, comes last. A kill then leaves the other files and a hidden folder (see `is_half_filled`).
    Raises `OSError` too, and replaces nothing, when something has come into the folder during the block.
    """
    final = Path(path).resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    stays = must_stay(final)
    new = _new_in(final) if stays else final
    with _alone(final, stays) as alone, ExitStack() as unchanged:
        before = contents(final) if final.is_dir() else None
        for leftover in leftovers_of(new, ".tmp") if alone else ():
            remove(leftover)
        temporary = new.with_name(new_name(new.name, ".tmp"))
        temporary.mkdir()
        try:
            yield temporary
            _publish_all(temporary)
            unchanged.enter_context(_as_it_was(final, before))
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            _say_where(error, final)
            raise
        if stays:
            _fill(final, temporary, last)
        else:
            _exchange(final, temporary, alone)


@contextmanager
def _alone(final: Path, stays: bool) -> Iterator[bool]:
    """Keep other writers out: by a lock in an existing folder, and one beside it unless it stays."""
    with ExitStack() as locks:
        beside = stays or locks.enter_context(only_writer(final))
        yield (not final.is_dir() or locks.enter_context(only_writer_in(final))) and beside


@contextmanager
def _as_it_was(final: Path, before: set[str] | None) -> Iterator[None]:
    """Raise `OSError` if something has come to where a folder will be replaced; else keep writers out of one that has.

    `before`: what the folder held before the work; None where there was none.
    """
    with only_writer_in(final) if before is None and final.is_dir() else nullcontext():
        if final.is_dir():
            come = {name for name in contents(final) - (before or set()) if not is_of_a_browser(name)}
        else:
            come = {final.name} if os.path.lexists(final) else set()
        if come:
            names = ", ".join(printable(name) for name in sorted(come)[:5])
            raise FileExistsError(
                f"{printable(final)} was about to be replaced, but {names} came into its place meanwhile; move that "
                "away, or choose another place, and run the command again"
            )
        yield


def _publish_all(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for entry in folder.rglob("*"):
        if entry.is_dir():
            sync(entry)
        else:
            _publish(entry, mode)


def _exchange(final: Path, new: Path, alone: bool) -> None:
    """Rename a new folder to its final name, and remove the old one."""
    old = final.with_name(new_name(final.name, ".old"))
    try:
        if final.exists():
            os.replace(final, old)
        os.replace(new, final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not final.exists():
            os.replace(old, final)
        raise
    for replaced in leftovers_of(final, ".old") if alone else (old,):
        remove(replaced)


def _fill(final: Path, new: Path, last: str) -> None:
    """Move the content of `new`, which lies inside `final`, up into it; everything else there is removed."""
    remove(final / last)
    sync(final)
    names = set(os.listdir(new))
    for name in sorted(names - {last}):
        if (final / name).is_dir():
            remove(final / name)
        os.replace(new / name, final / name)
    for name in set(os.listdir(final)) - names - {new.name, LOCK}:
        if not is_of_the_system(name):
            remove(final / name)
    sync(final)
    os.replace(new / last, final / last)
    new.rmdir()
    sync(final)


def is_half_filled(folder: Path) -> bool:
    """Whether a writer was killed while it filled a folder."""
    return bool(leftovers_of(_new_in(folder), ".tmp"))


def contents(folder: Path) -> set[str]:
    """The names in a folder, without our lock, leftovers of killed writers and folders of the system's own."""
    left = {path.name for path in leftovers_of(_new_in(folder), ".tmp")}
    return {name for name in os.listdir(folder) if not is_of_the_system(name)} - left - {LOCK}


def _new_in(folder: Path) -> Path:
    """The base of temporary names inside a folder being filled: the same wherever the folder is mounted."""
    return folder / "new"


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Create a folder and its parents if they are missing; when the block fails, those created are removed."""
    path = Path(os.path.realpath(path))  # a link may lead to a folder that does not exist yet
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _create(path: Path) -> int:
    """Create an empty file, following no link and replacing nothing; returns the permissions that new files get."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _publish(path: Path, mode: int) -> None:
    """Give a new file the usual permissions (some writers create private ones), then sync it."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, _SYNCED | flags)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            with suppress(OSError):  # where all files belong to another user (CIFS, exFAT): no reason to lose the data
                os.chmod(descriptor if os.chmod in os.supports_fd else path, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    if sys.platform == "win32" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, _SYNCED)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some shares sync files, and no folders
            raise
    finally:
        os.close(descriptor)
