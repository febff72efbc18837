"""Where images come from: a folder, one image, an `.npz`, WebDataset or Parquet shards, a named data set. Torch-free.

A listing holds names and labels as arrays, so that ten million images are listed without a Python object for each.
"""

from __future__ import annotations

import codecs
import functools
import glob
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
from PIL import Image

from byol.columns import Computed, Labels, Names
from byol.faults import Refusal
from byol.folders import LocalTree, Tree, folder_sections, folder_source
from byol.images import SUFFIXES, ImageSource, Place, UnreadableImage, read_image
from byol.locations import Location, NotAllowed, is_url, names_below, written_out
from byol.named import SPLITS, is_named, named_file
from byol.remote import RemoteTree, asked
from byol.remote_path import RemotePath, remote_path
from byol.shards import tar_source
from byol.stamps import file_stamp
from byol.tables import table_source
from byol.text import path_text, printable, reason_of, url_without_secrets

AnyPath = Path | RemotePath
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
        source = asked(str(location), lambda: _source_at(_path_of(location), str(location)))
    else:
        source = _source_at(Path(location), str(location))
    if len(source) == 0:
        reasons = "".join(f"\n  {item.path}: {item.reason}" for item in source.skipped[:5])
        raise ValueError(
            f"{source.name} holds no images (looked for {', '.join(sorted(SUFFIXES))} at every depth){reasons}"
        )
    return source


def _source_at(path: AnyPath, location: str) -> ImageSource:
    """What lies at a path, local or remote, or is meant by a location that is no path."""
    if path.is_dir():
        source = folder_source(_tree(path))
        shards = [] if len(source) else _shards_below(path)
        return _shard_source(printable(str(path)), shards, path) if shards else source
    if path.exists():
        return _file_source(path)
    if is_named(location):
        return _npz_source(named_file(location), location)
    shards = _matching(location)
    if not shards:
        raise ValueError(
            f"{printable(str(path))} does not exist; expected a folder of images, an .npz file, .tar or .parquet "
            f"shards, or a data set's name ({', '.join(SPLITS)})"
        )
    return _shard_source(printable(str(path)), shards)


def _path_of(location: Location) -> AnyPath:
    return remote_path(str(location)) if is_url(location) else Path(location)


def _tree(folder: AnyPath) -> Tree:
    return RemoteTree(folder) if isinstance(folder, RemotePath) else LocalTree(folder)


def _shards_below(folder: AnyPath) -> Sequence[AnyPath]:
    if isinstance(folder, RemotePath):
        return folder.files_below(SHARDS)
    return sorted(p for suffix in SHARDS for p in folder.rglob(f"*{suffix}"))


def _file_source(path: AnyPath) -> ImageSource:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _npz_source(path, printable(str(path)))
    if suffix in SHARDS:
        return _shard_source(printable(str(path)), [path])
    if suffix == ".txt":
        return _list_source(printable(str(path)), path.read_bytes())
    if suffix in SUFFIXES:
        name = printable(str(path))
        return ImageSource(name, [path_text(path.name)], Labels.none(1), [], lambda _: _read_file(path))
    raise ValueError(
        f"{printable(str(path))} is neither a folder of images, nor an .npz file, nor an image, nor a shard, "
        "nor a .txt file with one path a line"
    )


def _list_source(name: str, content: bytes) -> ImageSource:
    if b"\0" in content:
        raise ValueError(f"{name} is no UTF-8 text, it holds zero bytes; save it as UTF-8, one path or URL a line")
    lines = map(_unquoted, content.removeprefix(codecs.BOM_UTF8).split(b"\n"))
    listed = [line for line in lines if line]
    if not listed:
        raise ValueError(f"{name} holds no images: it is an empty list; write one path or URL a line")
    # Of the folder in which relative paths start, also the stamp tells: there may be other images elsewhere.
    here = b"" if all(os.path.isabs(line) or b"://" in line for line in listed) else os.getcwdb()
    names = Names(pa.array(listed, pa.large_binary()))
    return ImageSource(
        name=name,
        ids=Computed(len(names), lambda i: url_without_secrets(names[i])),
        labels=Labels.none(len(names)),
        skipped=[],
        open=lambda i: _read_listed(names.raw[i].as_py(), here),
        stamp=lambda: hashlib.sha256(content + here).hexdigest(),
    )


def _unquoted(line: bytes) -> bytes:
    """A line without blanks and a pair of quotes around it, as other programs write paths; inside, blanks count."""
    line = line.strip()
    return line[1:-1] if len(line) > 2 and line[:1] == line[-1:] and line[:1] in (b'"', b"'") else line


def _read_file(path: AnyPath) -> Image.Image:
    if not isinstance(path, RemotePath):
        return read_image(path)
    try:
        return path.picture()
    except Refusal as refusal:
        raise UnreadableImage(refusal.reason) from refusal


def _read_listed(line: bytes, here: bytes) -> Image.Image:
    if b"://" not in line:
        return read_image(os.path.join(here, line))
    try:
        path = remote_path(line.decode(), in_list=True)
    except (NotAllowed, UnicodeDecodeError, Refusal) as error:
        raise UnreadableImage(reason_of(error)) from error
    return _read_file(path)


def _matching(pattern: str) -> Sequence[AnyPath]:
    """The files of a pattern with `*`, `?`, `[...]` and number ranges `{000..099}`, sorted."""
    if is_url(pattern):
        remote = {file for one in written_out(pattern) for file in remote_path(one).matching()}
        return sorted(remote, key=str)
    return sorted({Path(found) for one in written_out(pattern) for found in glob.glob(one)})


def _shard_source(name: str, files: Sequence[AnyPath], root: AnyPath | None = None) -> ImageSource:
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1 or not kinds <= SHARDS.keys():
        raise ValueError(f"{name} holds files of {', '.join(sorted(kinds))}; give shards of one kind, .tar or .parquet")
    # The methods of `Path` that shards are read by, a `RemotePath` has, too.
    return SHARDS[kinds.pop()](name, cast(Sequence[Path], files), names_below(files, root))


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
    path = asked(str(location), lambda: _path_of(location))
    if kind != "row" and asked(str(location), path.is_dir):
        sections = folder_sections(_tree(path), size, bytes.fromhex(place))
        first = next(sections, None)
        if first or after:
            for source, last in chain([first] if first else [], sections):
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

    Raises `UnreadableImage`, and `SourceUnavailable` when the location is gone.
    """
    return _rows_of(location).open(place) if isinstance(place, int) else _opener_below(location)(place)


@functools.lru_cache(1)
def _rows_of(location: Location) -> ImageSource:
    return open_source(location)


@functools.lru_cache(1)
def _opener_below(location: Location) -> Callable[[bytes], Image.Image]:
    return _tree(_path_of(location)).open


# ------------------------------------------------------------------------------------------------------- .npz


def _npz_source(path: AnyPath, name: str) -> ImageSource:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            images = archive.get("images")
            labels = archive.get("labels")
            keys = ", ".join(archive.files)
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds
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
        stamp=lambda: file_stamp([cast(Path, path)]),
    )
