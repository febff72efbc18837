"""Walks a local folder: the paths of its images, or shards, sorted by their bytes. Torch-free."""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from byol.files.names import is_of_the_system
from byol.files.regular import NO_FILE, SourceUnavailable
from byol.images.source import Skipped
from byol.images.surroundings import ITS_OWN, Anchors, unavailable
from byol.run import OWN_VIEWS, VIEWS, is_run_folder
from byol.text import printable, reason_of

JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
SUFFIXES = frozenset({*JPEG, ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

ENDINGS = tuple(os.fsencode(suffix) for suffix in SUFFIXES)
RAW = (b".raw", b".cr2", b".cr3", b".nef", b".arw", b".orf", b".raf", b".rw2", b".pef", b".dng")  # of cameras
NOT_READ = (b".heic", b".heif", b".avif", b".jp2", b".jxl", b".svg", *RAW)
NOT_READ_REASON = "this format is not supported; convert the image to PNG or JPEG"
CHUNK = 65_536  # names of a folder held as Python objects at a time
OWN = os.fsencode(VIEWS)
NOT_YOURS = "a folder of the system's own, for deleted files, thumbnails or snapshots"
_LIKE_IT = re.compile(re.escape(NOT_YOURS) + r", like ([0-9]+) more")
TWICE = "symbolic link to a folder that is already listed"

Skip = Callable[[bytes, str], None]  # called with a path and why it is left out
Judge = Callable[[bytes], str | None]  # of a file's name: "" for a file that counts, None for one that does not, or why


def is_image(name: bytes) -> bool:
    """Whether a file's name ends as an image's does."""
    return name.lower().endswith(ENDINGS)


def judge_image(name: bytes) -> str | None:
    """Whether this is the name of an image that counts, or why it is left out."""
    if name.lower().endswith(NOT_READ):
        return NOT_READ_REASON
    return "" if is_image(name) else None


def folded(skipped: Sequence[Skipped]) -> list[Skipped]:
    """What was left out, with the system's own folders as one item: a NAS keeps one in each folder of photographs."""
    own = [item for item in skipped if _systems(item)]
    count = sum(map(_systems, own))
    if count < 2:
        return list(skipped)
    one = Skipped(own[0].path, f"{NOT_YOURS}, like {count - 1} more")
    return [one if item is own[0] else item for item in skipped if item is own[0] or not _systems(item)]


def _systems(item: Skipped) -> int:
    """How many of the system's own folders an item stands for."""
    found = _LIKE_IT.fullmatch(item.reason)
    return int(found[1]) + 1 if found else int(item.reason == NOT_YOURS)


def merged(images: Iterable[bytes], folders: Iterable[bytes]) -> Iterator[bytes]:
    """Sorted images and the folders beside them in the order of their paths; folders end in a slash, as paths go on."""
    return heapq.merge(images, sorted(name + b"/" for name in folders))


class Walk:
    """The files below a folder that `judge` accepts (by default images), as relative paths, sorted by their bytes.

    A link to a folder is followed if it leads out of everything walked; a folder reached twice counts once. Hidden
    files and folders do not count, nor do those of the system (`is_of_the_system`). A folder that cannot be listed ends
    the walk: nobody knows what it holds.
    """

    def __init__(self, root: bytes, anchors: Anchors, skip: Skip, judge: Judge = judge_image) -> None:
        self._root, self._anchors, self._skip, self._judge = root, anchors, skip, judge
        self._walked = [os.path.realpath(root)]
        self._seen: set[tuple[int, int]] = set()
        self._device: int | None = None

    def paths(self) -> Iterator[bytes]:
        """Walk, without a call for each level: folders may lie deeper than Python calls."""
        open_folders = [self._contents(b"")]
        while open_folders:
            for path in open_folders[-1]:
                if path.endswith(b"/"):
                    open_folders.append(self._contents(path[:-1]))
                    break
                yield path
            else:
                open_folders.pop()

    def _contents(self, folder: bytes) -> Iterator[bytes]:
        """The entries of a folder, sorted, folders with a trailing slash. Reports what it leaves out."""
        path = os.path.join(self._root, folder) if folder else self._root
        try:
            if (folder and os.path.islink(path) and self._is_listed(path)) or not self._enter(path, folder):
                self._skip(folder, TWICE)
                return
            images, left_out, folders = _entries(path, self._judge)
        except OSError as error:
            self._require_gone(path, folder, error)
            self._skip(folder, reason_of(error))
            return
        prefix = folder + b"/" if folder else b""
        for name in merged(heapq.merge(images, sorted(left_out)), folders):
            if name in left_out:
                self._skip(prefix + name, left_out[name])
            else:
                yield prefix + name

    def _enter(self, path: bytes, folder: bytes) -> bool:
        """Record a folder; False if it was met before."""
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in self._seen:
            return False
        self._seen.add((status.st_dev, status.st_ino))
        self._device = status.st_dev if self._device is None else self._device
        if os.path.islink(path) and folder:
            self._walked.append(os.path.realpath(path))
        if status.st_dev != self._device:  # a disk of its own may vanish alone
            self._anchors.note(path)
        return True

    def _is_listed(self, path: bytes) -> bool:
        target = os.path.realpath(path)
        below = (os.path.relpath(target, start) for start in self._walked if _is_below(target, start))
        return any(b"/." not in b"/" + way or way == b"." for way in below)

    def _require_gone(self, path: bytes, folder: bytes, error: OSError) -> None:
        """Raise `SourceUnavailable` unless a folder has just vanished."""
        if isinstance(error, PermissionError):
            raise SourceUnavailable(
                f"{printable(path)} cannot be listed: {reason_of(error)}; make it readable, move it away, or give a "
                "list of files"
            ) from error
        if folder and isinstance(error, FileNotFoundError | NotADirectoryError):
            self._anchors.require_same(path)
        else:
            raise unavailable(path, error) from error


def _is_below(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _entries(path: bytes, judge: Judge) -> tuple[Iterator[bytes], dict[bytes, str], list[bytes]]:
    """The files right in a folder, sorted (millions as one array), what is left out, and why, and the folders."""
    chunks: list[Any] = []
    files: list[bytes] = []
    left_out: dict[bytes, str] = {}
    folders: list[bytes] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            verdict = judge(entry.name)
            if _is_folder(entry):
                if is_of_the_system(os.fsdecode(entry.name)):
                    left_out[entry.name] = NOT_YOURS
                else:
                    folders.append(entry.name)
            elif verdict:
                left_out[entry.name] = verdict
            elif verdict == "" and entry.name == OWN and is_run_folder(path):
                left_out[entry.name] = OWN_VIEWS
            elif verdict == "" and _is_something_else(entry):
                left_out[entry.name] = NO_FILE
            elif verdict == "":  # also a link that leads nowhere: opening it tells the reason
                files.append(entry.name)
                if len(files) == CHUNK:
                    chunks.append(pa.array(files, pa.large_binary()))
                    files = []
            elif entry.is_symlink() and (reason := _lost(entry)):
                left_out[entry.name] = reason
    if not chunks:
        return iter(sorted(files)), left_out, folders
    listed = pa.concat_arrays([*chunks, pa.array(files, pa.large_binary())])
    listed = listed.take(pc.array_sort_indices(listed))
    starts = range(0, len(listed), CHUNK)
    images = (name for start in starts for name in listed[start : start + CHUNK].to_pylist())
    return images, left_out, folders


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    """True also if the system refuses to say: entering it will tell. Raises `OSError` for faults not its own."""
    try:
        return entry.is_dir()
    except PermissionError:
        return b"." not in entry.name
    except OSError as error:
        if error.errno not in ITS_OWN:
            raise
        return False  # a link that points to itself


def _is_something_else(entry: os.DirEntry[bytes]) -> bool:
    """Whether this exists and is not a regular file. Raises `OSError` as `_is_folder` does."""
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError as error:
        if error.errno not in ITS_OWN:
            raise
        return False  # opening it tells the reason


def _lost(entry: os.DirEntry[bytes]) -> str | None:
    """Why a link that may lead to a folder of images cannot be followed."""
    try:
        os.stat(entry.path)
    except FileNotFoundError:
        return None if b"." in entry.name else "a broken symbolic link"
    except OSError as error:
        return reason_of(error)
    return None
