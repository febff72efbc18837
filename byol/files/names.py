"""Names of companion files: locks, temporary files, lists of errors. Torch-free."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

MOST_BYTES = 255  # of a file's name, on all common file systems

# Folders that systems keep on a disk or share, for what was deleted, for thumbnails and for snapshots: nobody's images.
# In small letters: some systems write them otherwise. (`.snapshot` is hidden as it is.)
_OF_THE_SYSTEM = frozenset(
    {
        *("lost+found", "system volume information", "$recycle.bin"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # Synology's and QNAP's
        "~snapshot",  # NetApp's
    }
)
# What file browsers and file systems put into any folder, at any moment.
OF_BROWSERS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", ".directory"})
_RANDOM = re.compile(r"\.byol-[0-9a-f]{16}")
_EXAMPLE = ".byol-" + "0" * 16


def is_of_the_system(name: str) -> bool:
    """Whether a folder of this name is the system's own, not its user's."""
    return name.lower() in _OF_THE_SYSTEM


def is_of_a_browser(name: str) -> bool:
    """Whether a file browser or a network's file system made this, and nobody misses it."""
    return name in OF_BROWSERS or name.startswith(("._", ".nfs"))


def with_ending(name: str, ending: str) -> str:
    """`name` and an ending; a name that gets too long is cut, and a digest keeps it unique."""
    raw, room = os.fsencode(name), MOST_BYTES - len(os.fsencode(ending))
    if len(raw) <= room:
        return name + ending
    mark = "~" + hashlib.sha256(raw).hexdigest()[:16]
    return raw[: room - len(mark)].decode("utf-8", "ignore") + mark + ending


def hidden_name(name: str, ending: str) -> str:
    """The same with a leading dot: folders of images and features ignore such files."""
    return with_ending("." + name, ending)


def new_name(name: str, ending: str) -> str:
    """An unpredictable hidden name for what is being written (`.tmp`) or replaced (`.old`)."""
    return hidden_name(name, f".byol-{secrets.token_hex(8)}{ending}")


def leftovers_of(final: Path, ending: str) -> list[Path]:
    """What killed writers of `final` left under such names. Only the holder of its lock may remove it."""
    start = hidden_name(final.name, _EXAMPLE + ending).removesuffix(_EXAMPLE + ending)
    with os.scandir(final.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(start) and entry.name.endswith(ending)]
    middles = (name[len(start) : len(name) - len(ending)] for name in names)
    return [final.with_name(n) for n, middle in zip(names, middles, strict=True) if _RANDOM.fullmatch(middle)]


def leftovers_in(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    """What killed writers of the files of these patterns left in a folder, earlier versions' too, locks included."""
    for pattern in patterns:
        for ending in (".byol-*.tmp", ".tmp", ".lock"):
            yield from folder.glob(f".{pattern}{ending}")
