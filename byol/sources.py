"""Where images come from: a folder, one image, an `.npz`, WebDataset or Parquet shards, a named data set. Torch-free.

A listing holds names and labels as arrays, so that ten million images are listed without a Python object for each.
"""

from __future__ import annotations

import codecs
import functools
import glob
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from byol.arrays import open_arrays
from byol.columns import Computed, Labels, Names
from byol.folders import LocalTree, Tree, folder_sections, folder_source
from byol.images import SUFFIXES, ImageSource, Place, UnreadableImage, read_image
from byol.locations import Location, is_url, names_below
from byol.named import SPLITS, is_named, named_file
from byol.remote import RemoteTree, asked, guarded, matching, read_remote, remote_path
from byol.shard_files import open_file, shards_below
from byol.shards import tar_source
from byol.stamps import file_stamp
from byol.tables import table_source
from byol.text import on_one_line, path_text, printable, reason_of

SHARDS = {".tar": tar_source, ".parquet": table_source}


def open_source(location: Location) -> ImageSource:
    """Open a location as a source of images.

    A folder (searched to every depth; a folder without images may hold `.tar` or `.parquet` shards), an image, an
    `.npz` (`images` uint8 (N, H, W, 3), optional `labels` (N,)), a shard, a pattern of shards (`train-*.parquet`,
    `{000..099}.tar`), a text file with one path or URL a line (relative paths start at the current folder), `-` for
    such lines from standard input, the URL of any of these (`s3://bucket/images`), or a named data set (`cifar10`,
    `cifar10:test`).
    Raises `ValueError` when there is nothing there, no image in it, or the file is none of these.
    """
    if str(location) == "-":
        source = _list_source("standard input", sys.stdin.buffer.read())
    elif is_url(location):
        root = remote_path(str(location))
        source = asked(str(location), lambda: _source_at(root, str(location)))
        source = replace(source, open=guarded(source.open, root))
    else:
        source = _source_at(Path(location), str(location))
    if len(source) == 0:
        reasons = "".join(f"\n  {item.path}: {item.reason}" for item in source.skipped[:5])
        raise ValueError(
            f"{source.name} holds no images (looked for {', '.join(sorted(SUFFIXES))} at every depth){reasons}"
        )
    return source


def _source_at(path: Path, location: str) -> ImageSource:
    """What lies at a path, local or remote, or is meant by a location that is no path."""
    if path.is_dir():
        source = folder_source(_tree(path))
        shards, skipped = ([], []) if len(source) else shards_below(path, SHARDS)
        source = _shard_source(printable(path), shards, path) if shards else source
        return replace(source, skipped=[*skipped, *source.skipped])
    if path.exists():
        return _file_source(path)
    if is_named(location):
        return _npz_source(named_file(location), location)
    shards = _matching(location)
    if not shards:
        raise ValueError(
            f"{printable(path)} does not exist; expected a folder of images, an .npz file, .tar or .parquet "
            f"shards, or a data set's name ({', '.join(SPLITS)})"
        )
    return _shard_source(printable(path), shards)


def _tree(folder: Path) -> Tree:
    return RemoteTree(folder) if is_url(folder) else LocalTree(folder)


def _file_source(path: Path) -> ImageSource:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _npz_source(path, printable(path))
    if suffix in SHARDS:
        return _shard_source(printable(path), [path])
    if suffix == ".txt":
        return _list_source(printable(path), path.read_bytes())
    if suffix in SUFFIXES:
        name = printable(path)
        return ImageSource(name, [path_text(path.name)], Labels.none(1), [], lambda _: _read_file(path))
    raise ValueError(
        f"{printable(path)} is neither a folder of images, nor an .npz file, nor an image, nor a shard, "
        "nor a .txt file with one path a line"
    )


def _list_source(name: str, content: bytes) -> ImageSource:
    if b"\0" in content:
        raise ValueError(f"{name} is no UTF-8 text, it holds zero bytes; save it as UTF-8, one path or URL a line")
    lines = (line.rstrip(b"\r") for line in content.removeprefix(codecs.BOM_UTF8).split(b"\n"))
    listed = [line for line in lines if line.strip()]
    if not listed:
        raise ValueError(f"{name} holds no images: it is an empty list; write one path or URL a line")
    # Of the folder in which relative paths start, also the stamp tells: there may be other images elsewhere.
    here = b"" if all(os.path.isabs(line) or b"://" in line for line in listed) else os.getcwdb()
    names = Names(pa.array(listed, pa.large_binary()))
    return ImageSource(
        name=name,
        ids=names,
        labels=Labels.none(len(names)),
        skipped=[],
        open=lambda i: _read_listed(names.raw[i].as_py(), here),
        stamp=lambda: hashlib.sha256(content + here).hexdigest(),
    )


def _read_file(path: Any) -> Image.Image:
    return read_remote(path.fs, path.path) if is_url(path) else read_image(path)


def _read_listed(line: bytes, here: bytes) -> Image.Image:
    if b"://" not in line:
        return read_image(os.path.join(here, line))
    try:
        return _read_file(remote_path(line.decode()))
    except UnreadableImage:
        raise
    except Exception as error:  # protocols raise kinds of their own; the other lines may lead elsewhere
        raise UnreadableImage(reason_of(error)) from error


def _matching(pattern: str) -> list[Path]:
    """The files of a pattern with `*`, `?`, `[...]` and number ranges `{000..099}`, sorted."""
    plain = list(_ranges(pattern))
    if is_url(pattern):
        return sorted({file for one in plain for file in matching(one)}, key=str)
    return sorted({Path(found) for one in plain for found in glob.glob(one)})


def _ranges(pattern: str) -> Iterator[str]:
    """Patterns with the ranges `{first..last}` written out, zero-padded as `first` is."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _ranges(f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}")


def _shard_source(name: str, files: Sequence[Path], root: Path | None = None) -> ImageSource:
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1 or not kinds <= SHARDS.keys():
        raise ValueError(f"{name} holds files of {', '.join(sorted(kinds))}; give shards of one kind, .tar or .parquet")
    return SHARDS[kinds.pop()](name, files, names_below(files, root))


# --------------------------------------------------------------------------------------------------- sections


@dataclass(frozen=True)
class Section:
    """A run of consecutive images of a location.

    `end` says where it ends, for `open_sections` to go on behind it. `stamp` changes when an image of the location
    does; None for a folder of images, whose files may come and go.
    """

    source: ImageSource
    end: str
    stamp: str | None


def open_sections(location: Location, size: int, after: str = "") -> Iterator[Section]:
    """The images of a location in sections of `size`, behind the one that ended at `after`.

    A folder of images is listed while its sections are used, so that work begins before the listing ends; files that
    come or go meanwhile move no other image. Raises `ValueError` as `open_source` does, at the first section.
    """
    kind, _, place = after.partition(":")
    remote = is_url(location)
    path = remote_path(str(location)) if remote else Path(location)
    if kind != "row" and asked(str(location), path.is_dir):
        sections = folder_sections(_tree(path), size, bytes.fromhex(place))
        first = next(sections, None)
        if first or after:
            for source, last in chain([first] if first else [], sections):
                if remote:
                    source = replace(source, open=guarded(source.open, path))
                yield Section(source, f"path:{last.hex()}", None)
            return
    whole = open_source(location)
    stamp = whole.stamp() if whole.stamp else None
    for start in range(int(place or 0), len(whole), size):
        rows = range(start, min(start + size, len(whole)))
        source = replace(whole.subset(rows), skipped=whole.skipped if start == 0 else [], places=rows)
        yield Section(source, f"row:{rows.stop}", stamp)


def open_place(location: Location, place: Place) -> Image.Image:
    """Decode the image of a place that a section of `location` named, in any process that sees the location.

    Raises `UnreadableImage`, and `ValueError` when the location is gone.
    """
    return _rows_of(location).open(place) if isinstance(place, int) else _opener_below(location)(place)


@functools.lru_cache(1)
def _rows_of(location: Location) -> ImageSource:
    return open_source(location)


@functools.lru_cache(1)
def _opener_below(location: Location) -> Callable[[bytes], Image.Image]:
    if not is_url(location):
        return LocalTree(Path(location)).open
    root = remote_path(str(location))
    return guarded(RemoteTree(root).open, root)


# ------------------------------------------------------------------------------------------------------- .npz


def _npz_source(path: Path, name: str) -> ImageSource:
    try:
        with open_file(path) as stream, open_arrays(stream) as arrays:
            images, labels = (arrays.read(key) if key in arrays.names else None for key in ("images", "labels"))
            keys = on_one_line(", ".join(arrays.names[:20]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as an .npz file: {reason_of(error)}") from error
    if images is None:
        raise ValueError(f"{name} has no array `images` (it has: {keys or 'nothing'})")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"{name}: `images` must be uint8 (N, H, W, 3), found {images.dtype} {images.shape}")
    if 0 in images.shape[1:3]:
        raise ValueError(f"{name}: `images` has no pixels, its shape is {images.shape}")
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"{name}: `labels` must have shape ({len(images)},), found {labels.shape}")
    return ImageSource(
        name=name,
        ids=Computed(len(images), str),
        labels=Labels.none(len(images)) if labels is None else Labels.of_array(labels),
        skipped=[],
        open=lambda i: Image.fromarray(images[i]),
        stamp=lambda: file_stamp([path]),
    )
