"""Where images come from: a folder, one image, an `.npz`, WebDataset or Parquet shards, a named data set. Torch-free.

A listing holds names and labels as arrays, so that ten million images are listed without a Python object for each.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from byol.columns import Computed, Labels, Names
from byol.images import SUFFIXES, ImageSource, Skipped, printable, read_image, reason_of
from byol.named import SPLITS, is_named, named_file
from byol.shards import tar_source
from byol.stamps import content_stamp, file_stamp
from byol.tables import table_source

ENDINGS = tuple(os.fsencode(suffix) for suffix in SUFFIXES)
SHARDS = {".tar": tar_source, ".parquet": table_source}
CHUNK = 65_536  # names of a folder held as Python objects at a time


def open_source(location: str | Path) -> ImageSource:
    """Open a location as a source of images.

    A folder (searched to every depth; a folder without images may hold `.tar` or `.parquet` shards), an image, an
    `.npz` (`images` uint8 (N, H, W, 3), optional `labels` (N,)), a shard, a pattern of shards (`train-*.parquet`,
    `{000..099}.tar`), or a named data set (`cifar10`, `cifar10:test`).
    Raises `ValueError` when there is nothing there, no image in it, or the file is none of these.
    """
    path = Path(location)
    if path.is_dir():
        source = _folder_source(path)
        shards = [] if len(source) else sorted(p for suffix in SHARDS for p in path.rglob(f"*{suffix}"))
        if shards:
            source = _shard_source(printable(path), shards)
    elif path.exists():
        source = _file_source(path)
    elif is_named(str(location)):
        source = _npz_source(named_file(str(location)), str(location))
    else:
        shards = _matching(str(location))
        if not shards:
            raise ValueError(
                f"{printable(path)} does not exist; expected a folder of images, an .npz file, .tar or .parquet "
                f"shards, or a data set's name ({', '.join(SPLITS)})"
            )
        source = _shard_source(printable(path), shards)
    if len(source) == 0:
        reasons = "".join(f"\n  {item.path}: {item.reason}" for item in source.skipped[:5])
        raise ValueError(
            f"{source.name} holds no images (looked for {', '.join(sorted(SUFFIXES))} at every depth){reasons}"
        )
    return source


def _file_source(path: Path) -> ImageSource:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _npz_source(path, printable(path))
    if suffix in SHARDS:
        return _shard_source(printable(path), [path])
    if suffix in SUFFIXES:
        name = printable(path)
        return ImageSource(name, [printable(path.name)], Labels.none(1), [], lambda _: read_image(path))
    raise ValueError(f"{printable(path)} is neither a folder of images, nor an .npz file, nor an image, nor a shard")


def _matching(pattern: str) -> list[Path]:
    """The files of a pattern with `*`, `?`, `[...]` and number ranges `{000..099}`, sorted."""
    return sorted({Path(found) for plain in _ranges(pattern) for found in glob.glob(plain)})


def _ranges(pattern: str) -> Iterator[str]:
    """Patterns with the ranges `{first..last}` written out, zero-padded as `first` is."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _ranges(f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}")


def _shard_source(name: str, files: Sequence[Path]) -> ImageSource:
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1 or not kinds <= SHARDS.keys():
        raise ValueError(f"{name} holds files of {', '.join(sorted(kinds))}; give shards of one kind, .tar or .parquet")
    return SHARDS[kinds.pop()](name, files)


# ---------------------------------------------------------------------------------------------------- folders


def _folder_source(root: Path) -> ImageSource:
    base = os.fsencode(root)
    skipped: list[Skipped] = []
    chunks: list[Any] = []
    codes = array("i")
    classes: dict[bytes, int] = {}
    images = _scan(base, skipped)
    while paths := list(islice(images, CHUNK)):
        chunks.append(pa.array(paths, pa.large_binary()))
        codes.extend(_class_of(path, classes) for path in paths)
    listed = Names.of(chunks).raw
    order = pc.array_sort_indices(listed)
    names = Names(listed.take(order))
    labels = Labels(np.frombuffer(codes, np.int32), [printable(name) for name in classes])
    return ImageSource(
        name=printable(root),
        ids=names,
        labels=labels.take(order.to_numpy()),
        skipped=sorted(skipped, key=lambda item: item.path),
        open=lambda i: read_image(os.path.join(base, names.raw[i].as_py())),
        stamp=lambda: _folder_stamp(base, names),
    )


def _class_of(path: bytes, classes: dict[bytes, int]) -> int:
    """The number of a path's first folder, -1 for an image that lies in none; new ones are added to `classes`."""
    folder, slash, _ = path.partition(b"/")
    return classes.setdefault(folder, len(classes)) if slash else -1


def _scan(root: bytes, skipped: list[Skipped]) -> Iterator[bytes]:
    """Yield the images below a folder as paths relative to it.

    Links to folders come last, so that a link never takes the place of what it points to; a folder reached twice
    counts once.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = deque([b""]), deque[bytes]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        path = os.path.join(root, folder)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                skipped.append(Skipped(printable(folder), "symbolic link to a folder that is already listed"))
                continue
            seen.add((status.st_dev, status.st_ino))
            yield from _images_in(path, folder + b"/" if folder else b"", folders, links)
        except OSError as error:
            skipped.append(Skipped(printable(folder or root), reason_of(error)))


def _images_in(path: bytes, prefix: bytes, folders: deque[bytes], links: deque[bytes]) -> Iterator[bytes]:
    """Yield the images of one folder, and note its sub-folders and its links to folders."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(prefix + entry.name)
            elif entry.name.lower().endswith(ENDINGS):
                yield prefix + entry.name


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _folder_stamp(root: bytes, names: Names) -> str:
    """Size and time of every file, and some content: names and sizes alone may be the same for other images."""
    digest = hashlib.sha256()
    for start in range(0, len(names), CHUNK):
        chunk = names.raw[start : start + CHUNK].to_pylist()
        digest.update(np.array([_size_and_time(os.path.join(root, raw)) for raw in chunk], "<i8").tobytes())
    for i in np.linspace(0, len(names) - 1, min(64, len(names)), dtype=int):
        digest.update(content_stamp(os.path.join(root, names.raw[i].as_py())))
    return digest.hexdigest()


def _size_and_time(path: bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)
    return status.st_size, status.st_mtime_ns


# ------------------------------------------------------------------------------------------------------- .npz


def _npz_source(path: Path, name: str) -> ImageSource:
    try:
        with np.load(path, allow_pickle=False) as archive:
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
        stamp=lambda: file_stamp([path]),
    )
