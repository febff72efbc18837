"""Where something can be written, and where it ends up: links, mount points, permissions. Torch-free."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from byol.files.regular import NO_FILE
from byol.text import printable


def behind_links(path: str | os.PathLike[str]) -> Path:
    """Where a file written to `path` ends up. Raises `OSError` if `path` exists and is not a regular file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, NO_FILE, os.fspath(path))
    return Path(os.path.realpath(path))


def require_folder_place(path: Path) -> None:
    """Raise `ValueError` when `atomic_folder` could not put a folder at `path`: call it before the work."""
    final = path.resolve()
    if final.exists() and not final.is_dir():
        raise ValueError(f"{printable(path)} is a file; name a folder")
    require_writable(path, final)


def require_writable(path: Path, folder: Path) -> None:
    """Raise `ValueError` when `path` cannot be written because `folder` (which may be `path`) is not writable."""
    place = lowest_there(folder)
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        itself = place == Path(os.path.realpath(path))
        what = "is not writable" if itself else f"cannot be created: {printable(place)} is not a writable folder"
        raise ValueError(f"{printable(path)} {what}; choose another place, or change its permissions")


def lowest_there(path: Path) -> Path:
    """The path itself if it exists, else its nearest parent that does."""
    whole = path.absolute()
    return next(place for place in (whole, *whole.parents) if os.path.lexists(place))


def must_stay(folder: Path) -> bool:
    """Whether a folder cannot be renamed or replaced.

    That is a mount point, the current folder or one above it, or a folder in a read-only one: what containers get for
    their results.
    """
    runs_in_it = Path.cwd().is_relative_to(folder)
    return folder.is_dir() and (runs_in_it or is_mount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK))


def is_mount(path: Path) -> bool:
    """Whether this is a mount point: also of a file, or of its own disk (a bind mount)."""
    if os.path.ismount(path):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # another system than Linux
        return False
    places = (line.split(b" ")[4] for line in lines)
    return os.fsencode(path) in (re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), place) for place in places)
