"""Where decoded images and fetched data sets are kept between runs. Torch-free.

`$BYOL_HOME`, else `$XDG_CACHE_HOME/byol`, else `~/.cache/byol`. Decoded images lie in `decoded/KEY/`: every run that
needs the same images at the same size maps the same files. At most `$BYOL_CACHE_GB` (100, and never more than half of
what the disk has free) is kept; the entry used longest ago goes first.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byol.files import read_regular, sync
from byol.strict_json import read_object

DEFAULT_GB = 100.0
META, MOST_META = "meta.json", 256 << 20  # bytes: it lists the images that could not be read
_TEMPORARY = ".tmp-"


def home() -> Path:
    """The folder of everything kept."""
    if own := os.environ.get("BYOL_HOME"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "byol"


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


@dataclass(frozen=True)
class Entry:
    """One set of decoded images. `used` in seconds since 1970."""

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
        """The entry of a key, marked as used now."""
        entry = _entry(self.root / key)
        if entry:
            with suppress(OSError):
                os.utime(entry.path)
        return entry

    def entries(self) -> list[Entry]:
        """All entries, the one used longest ago first."""
        found = [_entry(path) for path in self.root.glob("[!.]*")] if self.root.is_dir() else []
        return sorted((entry for entry in found if entry), key=lambda entry: entry.used)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes may be kept, if need be in place of what is there."""
        if size > self.limit:
            return False
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        kept = sum(entry.size for entry in self.entries())
        return size <= (shutil.disk_usage(existing).free + kept) // 2

    @contextmanager
    def create(self, key: str, size: int) -> Iterator[Path]:
        """Give an empty folder; after the block its files are synced and found under `key`.

        Entries used longest ago make room. When another process was first, its entry stays and this one goes. Raises
        `OSError`; nothing is left then.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        self._make_room(size)
        temporary = self.root / f"{_TEMPORARY}{socket.gethostname()}-{os.getpid()}-{key}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                sync(file)
            try:
                os.rename(temporary, self.root / key)
            except OSError:
                if not (self.root / key).exists():  # another process was not first: a real failure
                    raise
            sync(self.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def drop(self, key: str) -> None:
        """Remove an entry. Processes that have mapped its files keep them."""
        shutil.rmtree(self.root / key, ignore_errors=True)

    def clear(self) -> int:
        """Remove all entries; the bytes freed."""
        entries = self.entries()
        for entry in entries:
            self.drop(entry.path.name)
        self._remove_abandoned()
        return sum(entry.size for entry in entries)

    def _make_room(self, size: int) -> None:
        entries = self.entries()
        excess = sum(entry.size for entry in entries) + size - self.limit
        free = shutil.disk_usage(self.root).free
        for entry in entries:
            if excess <= 0 and free >= 2 * size:
                break
            self.drop(entry.path.name)
            excess -= entry.size
            free += entry.size

    def _remove_abandoned(self) -> None:
        """Remove what killed processes of this machine, or anybody a week ago, left half-written."""
        for path in self.root.glob(f"{_TEMPORARY}*"):
            host, _, rest = path.name.removeprefix(_TEMPORARY).rpartition("-")[0].rpartition("-")
            dead = host == socket.gethostname() and not _is_running(int(rest)) if rest.isdigit() else False
            with suppress(OSError):
                if dead or time.time() - path.stat().st_mtime > 7 * 86_400:
                    shutil.rmtree(path, ignore_errors=True)


def _entry(path: Path) -> Entry | None:
    try:
        meta = read_object(read_regular(path / META, MOST_META))
        size = sum(file.stat().st_size for file in path.iterdir())
        return Entry(path, size, path.stat().st_mtime, meta)
    except (OSError, ValueError):
        return None


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs and belongs to someone else
        return True
    return True
