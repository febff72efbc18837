"""Folders of images, walked in the order of their paths: as one listing, or in sections during the walk. Torch-free.

`LocalTree` is a local folder, `byol.images.remote.tree.RemoteTree` one behind a URL.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from byol.files.regular import SourceUnavailable
from byol.images.columns import Computed, Labels, Names
from byol.images.lists import line_of
from byol.images.picture.read import read_image
from byol.images.source import ImageSource, Skipped
from byol.images.stamps import ListedFiles
from byol.images.surroundings import GO_ON, Anchors
from byol.images.walk import CHUNK, Skip, Walk, folded
from byol.text import path_text, printable


class Files(Protocol):
    """Images of a tree."""

    def stamp(self) -> str:
        """A digest that changes when one of them does."""

    def content(self) -> str:
        """A digest that is the same for a copy of them."""


class Tree(Protocol):
    """A folder of images, at every depth."""

    name: str

    def walk(self, skip: Skip) -> Iterator[bytes]:
        """Yield the images as paths relative to the folder, sorted by their bytes."""

    def open(self, path: bytes, least_side: int = 0) -> Image.Image:
        """Decode one of them; `least_side` as in `read_image`. Raises `UnreadableImage`."""

    def path(self, path: bytes) -> bytes:
        """The path or URL of one of them."""

    def files(self, names: Names) -> Files:
        """Some of its images, to detect changes."""


def folder_source(tree: Tree) -> ImageSource:
    """All images below a folder, in the order of their paths' bytes; the first folder of a path is the class."""
    skipped: list[Skipped] = []
    paths = tree.walk(lambda path, reason: skipped.append(Skipped(path_text(path), reason)))
    source = _section(tree, paths, skipped)
    skipped[:] = folded(skipped)  # complete only now
    return source


def folder_sections(
    tree: Tree, size: int, after: bytes = b"", ends: Sequence[bytes] = ()
) -> Iterator[tuple[ImageSource, bytes]]:
    """The same as consecutive sources of `size` images, made on demand, each with its last path.

    Whatever the listing leaves out is in `skipped` of the section it falls into. Only paths after `after` are yielded,
    so that a walk can resume where another ended. `ends` are the last paths of the first sections, if known: these
    sections then hold whatever there is now up to there. Raises `SourceUnavailable` when nothing is left up to `after`:
    then the disk is missing, not the images.
    """
    found: list[Skipped] = []
    inside = 0  # of `found`: those in the place of the current section
    met = not after

    def skip(path: bytes, reason: str) -> None:
        if path > after:
            found.append(Skipped(path_text(path), reason))

    def behind() -> Iterator[bytes]:
        nonlocal met
        for path in tree.walk(skip):
            met = met or path <= after
            if path > after:
                yield path

    paths = behind()
    following: list[bytes] = []

    def section(end: bytes | None) -> Iterator[bytes]:
        nonlocal following, inside
        given = 0
        for path in chain(following, paths):
            if path > end if end is not None else given == size:
                following = [path]
                return
            given, inside = given + 1, len(found)
            yield path
        following, inside = [], len(found)

    following = list(islice(paths, 1))
    if not met:
        raise SourceUnavailable(f"{tree.name} no longer holds any of the images processed so far; {GO_ON}")
    known = deque(ends)
    while following or known:
        end = known.popleft() if known else None
        skipped: list[Skipped] = []
        source = _section(tree, section(end), skipped)
        skipped += folded(found[:inside])
        del found[:inside]
        last: bytes = end or source.ids.raw[-1].as_py()  # type: ignore[attr-defined]
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
        open=lambda i, least_side=0: tree.open(names.raw[i].as_py(), least_side),
        stamp=lambda: tree.files(names).stamp(),
        content=lambda: tree.files(names).content(),
        places=Computed(len(names), lambda i: names.raw[i].as_py()),
        line=lambda i: line_of(tree.path(names.raw[i].as_py())),
    )


def _class_of(path: bytes, classes: dict[bytes, int]) -> int:
    """The number of a path's first folder, -1 for an image outside any; new ones are added to `classes`."""
    folder, slash, _ = path.partition(b"/")
    return classes.setdefault(folder, len(classes)) if slash else -1


class LocalTree:
    """A local folder. Its methods raise `SourceUnavailable` when it is gone or replaced."""

    def __init__(self, root: Path) -> None:
        self.name, self._root = printable(root), os.fsencode(root)
        self._anchors = Anchors(self._root)

    def walk(self, skip: Skip) -> Iterator[bytes]:
        """Yield the images as paths relative to the folder, sorted by their bytes."""
        return Walk(self._root, self._anchors, skip).paths()

    def open(self, path: bytes, least_side: int = 0) -> Image.Image:
        """Decode one of them; `least_side` as in `read_image`. Raises `UnreadableImage`."""
        return read_image(self.path(path), self._anchors, least_side)

    def path(self, path: bytes) -> bytes:
        """The path of one of them; relative where the folder was given so."""
        return os.path.join(self._root, path)

    def files(self, names: Names) -> ListedFiles:
        """Some of its images, to detect changes."""
        return ListedFiles(names, lambda name: os.path.join(self._root, name), self._anchors)
