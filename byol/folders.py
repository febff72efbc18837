"""Folders of images, walked in the order of their paths: as one listing, or in sections meanwhile. Torch-free.

`LocalTree` is a folder of this machine; `byol.remote.RemoteTree` one behind a URL.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from byol.columns import Computed, Labels, Names
from byol.files import NO_FILE
from byol.images import SUFFIXES, ImageSource, Skipped, read_image
from byol.stamps import content_stamp
from byol.text import path_text, printable, reason_of

ENDINGS = tuple(os.fsencode(suffix) for suffix in SUFFIXES)
NOT_READ = (b".heic", b".heif", b".avif", b".jp2", b".jxl", b".svg", b".raw", b".cr2", b".nef", b".dng")
NOT_READ_REASON = "images of this format are not read; convert it to PNG or JPEG"
CHUNK = 65_536  # names of a folder held as Python objects at a time

Skip = Callable[[bytes, str], None]  # called with a path and why it is left out


class Tree(Protocol):
    """A folder of images, at every depth."""

    name: str

    def walk(self, skip: Skip) -> Iterator[bytes]:
        """Yield the images as paths relative to the folder, sorted by their bytes."""

    def open(self, path: bytes) -> Image.Image:
        """Decode one of them. Raises `UnreadableImage`."""

    def stamp(self, names: Names) -> str:
        """A digest that changes when one of these images does."""


def folder_source(tree: Tree) -> ImageSource:
    """All images below a folder, in the order of their paths' bytes; the first folder of a path is the class."""
    skipped: list[Skipped] = []
    paths = tree.walk(lambda path, reason: skipped.append(Skipped(path_text(path), reason)))
    return _section(tree, paths, skipped)


def folder_sections(tree: Tree, size: int, after: bytes = b"") -> Iterator[tuple[ImageSource, bytes]]:
    """The same as consecutive sources of `size` images, each made when it is asked for; with the last path of each.

    What the listing leaves out is `skipped` of the section in whose place it is. Only what comes behind the path
    `after` is given: a walk can be taken up where another one ended.
    """
    found: list[Skipped] = []

    def skip(path: bytes, reason: str) -> None:
        if path > after:
            found.append(Skipped(path_text(path), reason))

    paths = (path for path in tree.walk(skip) if path > after)
    following = list(islice(paths, 1))
    while following:
        skipped = found.copy()
        found.clear()
        source = _section(tree, iter([*following, *islice(paths, size - 1)]), skipped)
        skipped += found
        found.clear()
        last: bytes = source.ids.raw[-1].as_py()  # type: ignore[attr-defined]
        following = list(islice(paths, 1))
        if not following:
            skipped += found
        yield source, last


def _section(tree: Tree, paths: Iterator[bytes], skipped: list[Skipped]) -> ImageSource:
    chunks: list[Any] = []
    codes = array("i")
    classes: dict[bytes, int] = {}
    while part := list(islice(paths, CHUNK)):
        chunks.append(pa.array(part, pa.large_binary()))
        codes.extend(_class_of(path, classes) for path in part)
    names = Names.of(chunks)
    return ImageSource(
        name=tree.name,
        ids=names,
        labels=Labels(np.frombuffer(codes, np.int32), [path_text(name) for name in classes]),
        skipped=skipped,
        open=lambda i: tree.open(names.raw[i].as_py()),
        stamp=lambda: tree.stamp(names),
        places=Computed(len(names), lambda i: names.raw[i].as_py()),
    )


def _class_of(path: bytes, classes: dict[bytes, int]) -> int:
    """The number of a path's first folder, -1 for an image that lies in none; new ones are added to `classes`."""
    folder, slash, _ = path.partition(b"/")
    return classes.setdefault(folder, len(classes)) if slash else -1


def is_image(name: bytes) -> bool:
    """Whether a file's name ends as an image's does."""
    return name.lower().endswith(ENDINGS)


def merged(images: Iterable[bytes], folders: Iterable[bytes]) -> Iterator[bytes]:
    """Sorted images and the folders beside them in the order of their paths; folders end in a slash, as paths go on."""
    return heapq.merge(images, sorted(name + b"/" for name in folders))


class LocalTree:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.name, self._root = printable(root), os.fsencode(root)

    def walk(self, skip: Skip) -> Iterator[bytes]:
        """Yield the images as paths relative to the folder, sorted by their bytes."""
        return _walk(self._root, skip)

    def open(self, path: bytes) -> Image.Image:
        """Decode one of them. Raises `UnreadableImage`."""
        return read_image(os.path.join(self._root, path))

    def stamp(self, names: Names) -> str:
        """Size and time of every file, and some content: names and sizes alone may be the same for other images."""
        digest = hashlib.sha256()
        for start in range(0, len(names), CHUNK):
            chunk = names.raw[start : start + CHUNK].to_pylist()
            digest.update(np.array([_size_and_time(os.path.join(self._root, raw)) for raw in chunk], "<i8").tobytes())
        for i in np.linspace(0, len(names) - 1, min(64, len(names)), dtype=int):
            digest.update(content_stamp(Path(os.fsdecode(os.path.join(self._root, names.raw[i].as_py())))))
        return digest.hexdigest()


def _walk(root: bytes, skip: Skip) -> Iterator[bytes]:
    """Yield the images below a folder as paths relative to it, sorted by their bytes.

    A link to a folder is followed where it leads out of everything that is walked; a folder reached twice counts once.
    Hidden files and folders do not count.
    """
    walked = [os.path.realpath(root)]
    seen: set[tuple[int, int]] = set()

    def is_listed(path: bytes) -> bool:
        target = os.path.realpath(path)
        below = (os.path.relpath(target, start) for start in walked if _is_below(target, start))
        return any(b"/." not in b"/" + way or way == b"." for way in below)

    def walk(folder: bytes) -> Iterator[bytes]:
        path = os.path.join(root, folder)
        try:
            if os.path.islink(path) and folder:
                if is_listed(path):
                    skip(folder, "symbolic link to a folder that is already listed")
                    return
                walked.append(os.path.realpath(path))
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                skip(folder, "symbolic link to a folder that is already listed")
                return
            seen.add((status.st_dev, status.st_ino))
            images, left_out, folders = _entries(path)
        except OSError as error:
            skip(folder, reason_of(error))
            return
        prefix = folder + b"/" if folder else b""
        for name in merged(heapq.merge(images, sorted(left_out)), folders):
            if name.endswith(b"/"):
                yield from walk(prefix + name[:-1])
            elif name in left_out:
                skip(prefix + name, left_out[name])
            else:
                yield prefix + name

    return walk(b"")


def _is_below(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _entries(path: bytes) -> tuple[Iterator[bytes], dict[bytes, str], list[bytes]]:
    """The images right in a folder, sorted (millions as one array), what is left out, and why, and the folders."""
    chunks: list[Any] = []
    names: list[bytes] = []
    left_out: dict[bytes, str] = {}
    folders: list[bytes] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if _is(entry.is_dir):
                folders.append(entry.name)
            elif entry.name.lower().endswith(NOT_READ):
                left_out[entry.name] = NOT_READ_REASON
            elif is_image(entry.name) and not _is(entry.is_file) and os.path.exists(entry.path):
                left_out[entry.name] = NO_FILE
            elif is_image(entry.name):  # also a link that leads nowhere: opening it tells the reason
                names.append(entry.name)
                if len(names) == CHUNK:
                    chunks.append(pa.array(names, pa.large_binary()))
                    names = []
    if not chunks:
        return iter(sorted(names)), left_out, folders
    listed = pa.concat_arrays([*chunks, pa.array(names, pa.large_binary())])
    listed = listed.take(pc.array_sort_indices(listed))
    starts = range(0, len(listed), CHUNK)
    images = (name for start in starts for name in listed[start : start + CHUNK].to_pylist())
    return images, left_out, folders


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link that points to itself
        return False


def _size_and_time(path: bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)
    return status.st_size, status.st_mtime_ns
