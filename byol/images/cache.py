"""Where decoded images and fetched data sets are kept between runs. Torch-free.

`$BYOL_HOME`, else `$XDG_CACHE_HOME/byol`, else `~/.cache/byol`. Decoded images lie in `decoded/KEY/`: every run that
needs the same images at the same size maps the same files. At most `$BYOL_CACHE_GB` (100, and never more than half of
what the disk has free) is kept; the entry used longest ago goes first.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.console import note
from byol.files.atomic import remove, sync
from byol.files.locks import only_writer
from byol.files.places import lowest_there
from byol.files.regular import read_regular
from byol.images.picture.pages import Several
from byol.strict_json import read_object
from byol.text import printable, reason_of

DEFAULT_GB = 100.0
META = "meta.json"
SEVERAL = "several"  # its key for what entries of earlier versions do not say
ARRAYS = ("pixels.npy", "aspect.npy", "indices.npy")
MOST_META = 256 << 20  # bytes: it lists the images that could not be read
WEEK = 7 * 86_400  # seconds
_TEMPORARY = ".tmp-"
_NO_ENTRY = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EFBIG)


def home() -> Path:
    """The folder of everything kept between runs."""
    if own := os.environ.get("BYOL_HOME"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "byol"
    except RuntimeError:  # a user without a home: nothing can be kept
        return Path(os.devnull) / "byol"


def size_limit() -> int:
    """`$BYOL_CACHE_GB` in bytes; 0 keeps nothing. Raises `ValueError` when it is not a number of 0 or more."""
    text = os.environ.get("BYOL_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else DEFAULT_GB
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise ValueError(f"BYOL_CACHE_GB is {text!r}; expected a number of 0 or more")
    return int(gigabytes * 1e9)


class CacheError(OSError):
    """Nothing can be cached: the disk is full, or the folder is not writable. Only the cache is lost."""


@dataclass(frozen=True)
class Entry:
    """One set of decoded images. `used` in seconds since 1970, `meta` as `read_meta` has checked it."""

    path: Path
    size: int
    used: float
    meta: dict[str, Any]


class DecodedCache:
    """Folders under a content key, written whole or not at all, within a size limit in bytes."""

    def __init__(self, root: Path | None = None, limit: int | None = None):
        self.root = root or home() / "decoded"
        self.limit = size_limit() if limit is None else limit

    def find(self, key: str) -> Entry | None:
        """The entry of a key, marked as used now; None where there is none, or no sound one. Raises `CacheError`."""
        with self.failing_alone():
            entry = _entry(self.root / key)
        if entry:
            with suppress(OSError):
                os.utime(entry.path)
        return entry

    def entries(self) -> list[Entry]:
        """All entries, the one used longest ago first."""
        found = list[Entry | None]()
        with suppress(OSError):  # a folder above that cannot be entered
            for path in self.root.glob("[!.]*") if self.root.is_dir() else ():
                with suppress(OSError):
                    found.append(_entry(path))
        return sorted((entry for entry in found if entry), key=lambda entry: entry.used)

    def room(self) -> int:
        """How many bytes a new entry may have, if need be in place of older ones. Raises `CacheError`."""
        kept = sum(entry.size for entry in self.entries())
        with self.failing_alone():
            return min(self.limit, (shutil.disk_usage(lowest_there(self.root)).free + kept) // 2)

    def has_room(self, size: int) -> bool:
        """Whether a new entry may have `size` bytes. Raises `CacheError`."""
        return size <= self.limit and size <= self.room()

    @contextmanager
    def create(self, key: str, size: int) -> Iterator[Path]:
        """Give an empty folder; after the block its files are synced and found under `key`.

        Entries used longest ago make room. If another process was first, its entry stays and this one is removed.
        Raises `CacheError`, leaving nothing behind. A lock beside the folder marks it as being written: process numbers
        mean nothing when two containers share a home.
        """
        temporary = self.root / f"{_TEMPORARY}{secrets.token_hex(8)}"
        with ExitStack() as stack:
            with self.failing_alone():
                self.root.mkdir(parents=True, exist_ok=True)
                self._remove_abandoned()
                self._make_room(size)
                stack.enter_context(only_writer(temporary, _lock_of(temporary)))  # before there is a folder
                temporary.mkdir()
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            yield temporary
            with self.failing_alone():
                grown = self._publish(temporary, self.root / key)
        if grown:
            self._tell(key)

    def _tell(self, key: str) -> None:
        """Say what was added, and how large all of it is now: nobody asked for it, and it stays."""
        sizes = {entry.path.name: entry.size for entry in self.entries()}
        note(
            f"kept {gigabytes(sizes.get(key, 0))} of decoded images for later runs; `byol cache` lists all entries "
            f"({gigabytes(sum(sizes.values()))}, limit {self.limit / 1e9:g} GB); `byol cache clear` removes them"
        )

    @contextmanager
    def failing_alone(self) -> Iterator[None]:
        """Turn an `OSError` in the block into a `CacheError`, which stops no other work."""
        try:
            yield
        except OSError as error:
            raise CacheError(error.errno, f"{printable(self.root)} keeps no images: {reason_of(error)}") from error

    def _publish(self, temporary: Path, final: Path) -> bool:
        """Give the folder its name; False if another process was first."""
        for file in temporary.iterdir():
            sync(file)
        try:
            os.rename(temporary, final)
        except OSError:
            if not final.exists():  # no other process was first: a real failure
                raise
            return False
        sync(self.root)
        return True

    def drop(self, key: str) -> None:
        """Remove what lies under a key. Processes that have mapped its files keep them. Raises `CacheError`."""
        path = self.root / key
        if not os.path.lexists(path):
            return
        try:
            remove(path)
        except OSError as error:
            if os.path.lexists(path):  # else another process was first
                raise CacheError(error.errno, f"{printable(path)} cannot be removed: {reason_of(error)}") from error

    def clear(self, keys: Sequence[str] = ()) -> int:
        """Remove the entries whose keys begin so, or all; returns the bytes freed.

        Raises `ValueError`, removing nothing, where no entry or several begin so, and `CacheError` when some stay.
        """
        entries = self.entries()
        chosen = [_only(entries, key) for key in keys] if keys else entries
        freed, stay = 0, list[CacheError]()
        for entry in chosen:
            try:
                self.drop(entry.path.name)
                freed += entry.size
            except CacheError as error:
                stay.append(error)
        self._remove_abandoned()
        if stay:
            raise CacheError(f"{gigabytes(freed)} freed; {reason_of(stay[0])}; remove it as the user who made it")
        return freed

    def _make_room(self, size: int) -> None:
        entries = self.entries()
        excess = sum(entry.size for entry in entries) + size - self.limit
        free = shutil.disk_usage(self.root).free
        stays: CacheError | None = None
        for entry in entries:
            if excess <= 0 and free >= 2 * size:
                break
            try:
                self.drop(entry.path.name)
            except CacheError as error:
                stays = error
                continue
            excess -= entry.size
            free += entry.size
        if stays and excess > 0:
            raise stays

    def _remove_abandoned(self) -> None:
        """Remove what killed processes left half-written: its lock is free, or without a lock it is a week old."""
        for path in self.root.glob(f"{_TEMPORARY}*"):
            with suppress(OSError):
                if path.is_dir() and _is_abandoned(path):
                    shutil.rmtree(path, ignore_errors=True)


def gigabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _only(entries: Sequence[Entry], key: str) -> Entry:
    """The entry whose key begins so."""
    found = [entry for entry in entries if entry.path.name.startswith(key)]
    if len(found) != 1 or not key:
        count = "several entries have" if found else "no entry has"
        raise ValueError(f"{count} a key that begins with {key!r}; `byol cache` lists the keys")
    return found[0]


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(f"{temporary.name}.lock")


def _is_abandoned(temporary: Path) -> bool:
    """Whether the process that wrote the folder is gone; if no lock can tell, judged by age.

    Raises `BlockingIOError` while it is at work.
    """
    lock = _lock_of(temporary)
    if lock.is_file():
        with only_writer(temporary, lock) as alone:
            if alone:
                return True
    return time.time() - temporary.stat().st_mtime > WEEK


def read_meta(folder: Path) -> dict[str, Any]:
    """What an entry's `meta.json` says. Raises `ValueError` or `OSError` when it is damaged."""
    meta = read_object(read_regular(folder / META, MOST_META, follow=False))
    listed = [*meta["listed"], *meta["unreadable"]] if _has_types(meta) else None
    if listed is None or not all(_is_skipped(item) for item in listed):
        raise ValueError("it is not the meta.json of an entry")
    Several.read(meta.get(SEVERAL))
    return meta


def _has_types(meta: dict[str, Any]) -> bool:
    kinds = {"name": str, "images": int, "shape": list, "listed": list, "unreadable": list}
    typed = all(type(meta.get(name)) is kind for name, kind in kinds.items())
    return typed and len(meta["shape"]) == 4 and all(type(side) is int and side >= 0 for side in meta["shape"])


def _is_skipped(item: object) -> bool:
    return isinstance(item, dict) and item.keys() == {"path", "reason"} and all(type(v) is str for v in item.values())


def _entry(path: Path) -> Entry | None:
    """The entry at a path, None for anything else: only entries are ever removed.

    Raises `OSError` where the system, not the path, is at fault.
    """
    try:
        meta = read_meta(path)
        files = {file.name: file.lstat() for file in path.iterdir()}
        used = path.lstat()
    except ValueError:
        return None
    except OSError as error:
        if error.errno in _NO_ENTRY:
            return None
        raise
    plain = stat.S_ISDIR(used.st_mode) and all(stat.S_ISREG(file.st_mode) for file in files.values())
    if not plain or not files.keys() <= {META, *ARRAYS}:
        return None
    return Entry(path, sum(file.st_size for file in files.values()), used.st_mtime, meta)
