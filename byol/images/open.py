"""Where images come from: a folder, one image, an `.npz`, WebDataset or Parquet shards, a named data set. Torch-free.

A listing holds names and labels as arrays, so that ten million images are listed without a Python object for each.
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from byol.console import standard_input
from byol.files.npz import open_arrays
from byol.files.regular import SourceUnavailable
from byol.images.columns import Computed, Labels
from byol.images.folder import LocalTree, Tree, folder_sections, folder_source
from byol.images.labels import labels_of_array
from byol.images.lists import line_of, list_source, read_file
from byol.images.location import Location, is_url, names_below, written_out
from byol.images.named import SPLITS, is_named, named_file
from byol.images.remote.path import RemotePath, remote_path
from byol.images.remote.tree import RemoteTree, asked
from byol.images.shards.listing import PACKED_REASON, AnyPath, Shard, is_packed, open_file, shards_below
from byol.images.shards.parquet import holds_images, table_source
from byol.images.shards.schema import Unusable
from byol.images.shards.tar import tar_source
from byol.images.source import ImageSource, Place, Skipped
from byol.images.stamps import file_stamp
from byol.images.surroundings import GO_ON, Anchors
from byol.images.walk import SUFFIXES
from byol.text import on_one_line, path_text, printable, reason_of

SHARDS = {".tar": tar_source, ".parquet": table_source}


def open_source(location: Location, here: bytes | None = None) -> ImageSource:
    """Open a location as a source of images.

    A folder (searched to every depth; a folder without images may hold `.tar` or `.parquet` shards), an image, an
    `.npz` (`images` uint8 (N, H, W, 3), optional `labels` (N,)), a shard, a pattern of shards (`train-*.parquet`,
    `{000..099}.tar`), a text file with one path or URL a line (relative paths start at `here`, the current folder), `-`
    for such lines from standard input, the URL of any of these (`s3://bucket/images`), or a named data set (`cifar10`,
    `cifar10:test`).
    Raises `ValueError` when nothing is there, it holds no images, or it is none of these.
    """
    if str(location) == "-":
        source = list_source("standard input", standard_input(), here)
    elif is_url(location):
        source = asked(str(location), lambda: _source_at(_path_of(location), str(location), here))
    else:
        source = _source_at(Path(location), str(location), here)
    if len(source) == 0:
        reasons = "".join(f"; {printable(item.path)}: {item.reason}" for item in source.skipped[:5])
        raise ValueError(
            f"{source.name} holds no images (searched every depth for {', '.join(sorted(SUFFIXES))}){reasons}"
        )
    return source


def _source_at(path: AnyPath, location: str, here: bytes | None) -> ImageSource:
    """The source at a path, local or remote, or that a pattern or a data set's name stands for."""
    if path.is_dir():
        source = folder_source(_tree(path))
        if len(source):
            return source
        shards, skipped = shards_below(path, SHARDS)
        found = _shard_source(printable(str(path)), shards, path) if shards else source
        both = {item.path: item for item in (*source.skipped, *skipped, *found.skipped)}  # the folder was walked twice
        return replace(found, skipped=list(both.values()))
    if path.exists():
        return _file_source(path, here)
    if is_named(location):
        return _npz_source(named_file(location), location)
    shards = _matching(location)
    if not shards:
        raise ValueError(
            f"{printable(str(path))} does not exist; expected a folder of images, one image, .npz, .tar or .parquet "
            f"shards, a .txt list, a URL, or a data set ({', '.join(SPLITS)})"
        )
    return _shard_source(printable(str(path)), shards)


def _path_of(location: Location) -> AnyPath:
    return remote_path(str(location)) if is_url(location) else Path(location)


def _tree(folder: AnyPath) -> Tree:
    return RemoteTree(folder) if isinstance(folder, RemotePath) else LocalTree(folder)


def _file_source(path: AnyPath, here: bytes | None) -> ImageSource:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _npz_source(path, printable(str(path)))
    if suffix in SHARDS:
        return _shard_source(printable(str(path)), [path])
    if suffix == ".txt":
        with open_file(path) as stream:  # only of a regular file: a pipe would block
            return list_source(printable(str(path)), stream.read(), here)
    if suffix in SUFFIXES:
        name = printable(str(path))
        anchors = Anchors() if isinstance(path, RemotePath) else Anchors(os.fsencode(path.parent))

        def read(_: int, least_side: int = 0) -> Image.Image:
            return read_file(path, anchors, least_side)

        line = line_of(os.fsencode(str(path)))
        return ImageSource(name, [path_text(path.name)], Labels.none(1), [], read, line=lambda _: line)
    if is_packed(os.fsencode(path.name)):
        raise ValueError(f"{printable(str(path))}: {PACKED_REASON}")
    raise ValueError(
        f"{printable(str(path))} is not an image, an .npz file, a shard or a .txt list; name one of these, or a folder"
    )


def _matching(pattern: str) -> Sequence[AnyPath]:
    """The files of a pattern with `*`, `?`, `[...]` and number ranges `{000..099}`, sorted."""
    if is_url(pattern):
        remote = {file for one in written_out(pattern) for file in remote_path(one).matching()}
        return sorted(remote, key=str)
    found = sorted({Path(name) for one in written_out(pattern) for name in glob.glob(one)})
    return [file for path in found for file in (shards_below(path, SHARDS)[0] if path.is_dir() else [path])]


def _shard_source(name: str, files: Sequence[AnyPath], root: AnyPath | None = None) -> ImageSource:
    kinds, skipped = {file.suffix.lower() for file in files}, list[Skipped]()
    if kinds == SHARDS.keys():
        files, skipped = _without_metadata(files, names_below(files, root))
        kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1 or not kinds <= SHARDS.keys():
        raise ValueError(f"{name} holds files of {', '.join(sorted(kinds))}; give shards of one kind, .tar or .parquet")
    # A `RemotePath` has the methods of `Path` that reading shards needs.
    source = SHARDS[kinds.pop()](name, cast(Sequence[Path], files), names_below(files, root))
    return replace(source, skipped=[*skipped, *source.skipped])


def _without_metadata(files: Sequence[AnyPath], names: Sequence[str]) -> tuple[Sequence[AnyPath], list[Skipped]]:
    """Shards without the image-free tables that img2dataset writes beside `.tar` files; and the damaged ones."""
    kept, skipped = list[AnyPath](), list[Skipped]()
    for file, name in zip(files, names, strict=True):
        try:
            if file.suffix.lower() == ".tar" or holds_images(cast(Path, file)):
                kept.append(file)
        except Unusable as error:
            skipped.append(Skipped(path_text(name), str(error)))
    return kept, skipped


# --------------------------------------------------------------------------------------------------- sections


@dataclass(frozen=True)
class Section:
    """A run of consecutive images of a location.

    `end` says where it ends, so that `open_sections` can continue after it. `stamp` changes when an image of the
    location does; None for a folder of images, whose files may come and go.
    """

    source: ImageSource
    end: str
    stamp: str | None


def open_sections(location: Location, size: int, after: str = "", ends: Sequence[str] = ()) -> Iterator[Section]:
    """The images of a location in sections of `size`, after the one that ended at `after`; `ends` fixes the first ones.

    A folder of images is listed while its sections are used, so that work begins before the listing ends; files that
    come or go meanwhile shift no other image. Raises `ValueError` as `open_source` does, at the first section, and
    `SourceUnavailable` when nothing is left of what a folder held before `after`.
    """
    rows = (after or next(iter(ends), "")).startswith("row:")  # of a folder of shards, which is listed as a whole
    path = asked(str(location), lambda: _path_of(location))
    if not rows and asked(str(location), path.is_dir):
        sections = folder_sections(_tree(path), size, _last_of(after), [_last_of(end) for end in ends])
        first = next(sections, None)
        if first or after:
            for source, last in chain([first] if first else [], sections):
                yield Section(source, f"path:{last.hex()}", None)
            return
    whole = open_source(location)
    identity = whole.listing or whole.stamp
    stamp = identity() if identity else None
    for start in range(int(after.removeprefix("row:") or 0), len(whole), size):
        part = range(start, min(start + size, len(whole)))
        skipped = whole.skipped if start == 0 else []
        source = replace(whole.subset(part), skipped=skipped, places=part, listing=whole.listing, start=whole.start)
        yield Section(source, f"row:{part.stop}", stamp)


def _last_of(end: str) -> bytes:
    return bytes.fromhex(end.removeprefix("path:"))


def rows_digest(source: ImageSource) -> str:
    """What tells whether a section's places, if they are rows, mean the same elsewhere; empty if they are names."""
    return _digest_of(source) if isinstance(source.places, range) else ""


def _digest_of(source: ImageSource) -> str:
    """Without times: a copy on another machine has others."""
    digest = source.listing or source.content
    return digest() if digest else ""


def open_place(
    location: Location, place: Place, here: bytes | None = None, least_side: int = 0, rows: str = ""
) -> Image.Image:
    """Decode the image at a place that a section of `location` named, in any process that can read the location.

    `here` is the folder in which relative paths of a list start; `least_side`: as in `read_image`; `rows`: the
    `rows_digest` of the section. Raises `UnreadableImage`, and `SourceUnavailable` when the location is gone, or when
    its rows are others.
    """
    if isinstance(place, int):
        return _rows_of(location, here, rows).open(place, least_side)
    return _opener_below(location)(place, least_side)


@functools.lru_cache(1)
def _rows_of(location: Location, here: bytes | None, rows: str) -> ImageSource:
    source = open_source(location, here)
    if rows and rows != _digest_of(source):
        raise SourceUnavailable(
            f"{source.name} has changed since it was listed, or is another one on one of the machines; {GO_ON}"
        )
    return source


@functools.lru_cache(1)
def _opener_below(location: Location) -> Callable[[bytes, int], Image.Image]:
    return _tree(_path_of(location)).open


# ------------------------------------------------------------------------------------------------------- .npz


def _npz_source(path: AnyPath, name: str) -> ImageSource:
    try:
        with Shard(path).listing() as stream, open_arrays(stream) as arrays:
            images, labels = (arrays.read(key) if key in arrays.names else None for key in ("images", "labels"))
            keys = on_one_line(", ".join(arrays.names[:20]))
    except SourceUnavailable:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as an .npz file: {reason_of(error)}") from error
    if images is None:
        raise ValueError(f"{name} has no array `images` (it has: {keys or 'nothing'})")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"{name}: `images` must be uint8 (N, H, W, 3), found {images.dtype} {images.shape}")
    if 0 in images.shape[1:3]:
        raise ValueError(f"{name}: `images` has no pixels; its shape is {images.shape}")
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"{name}: `labels` must have shape ({len(images)},), found {labels.shape}")
    return ImageSource(
        name=name,
        ids=Computed(len(images), str),
        labels=Labels.none(len(images)) if labels is None else labels_of_array(labels),
        skipped=[],
        open=lambda i, least_side=0: Image.fromarray(images[i]),
        stamp=lambda: file_stamp([cast(Path, path)]),
        content=lambda: file_stamp([cast(Path, path)], times=False),
    )
