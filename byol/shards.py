"""WebDataset shards: `.tar` files read at random, through an index made by one pass over their headers. Torch-free.

A sample is the files that share a key (path up to the first dot of the file's name): one image, and the text of
`.cls` as its class. Python's own `tarfile` reads the headers. The `webdataset` library reads a stream from its
start, which rules out a shuffle over all images and an exact resume; an index gives both.
"""

from __future__ import annotations

import io
import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from byol.columns import Labels, Names
from byol.images import SUFFIXES, ImageSource, Skipped, UnreadableImage, read_image
from byol.remote import read_range
from byol.stamps import file_stamp
from byol.text import path_text, printable, reason_of

MOST_CLASS_BYTES = 1024  # of a `.cls` file


def tar_source(name: str, files: Sequence[Path], file_names: Sequence[str]) -> ImageSource:
    """The images of some shards, in the order of the shards and of the files in them.

    An id is the member's name, behind the shard's in `file_names` where there are several.
    """
    index = _Index()
    for number, (file, file_name) in enumerate(zip(files, file_names, strict=True)):
        index.add(number, file, file_name, f"{file_name}/" if len(files) > 1 else "")
    places = np.frombuffer(index.places, np.int64).reshape(-1, 3)  # (N, 3): shard, offset, size
    return ImageSource(
        name=name,
        ids=Names.of(index.chunks),
        labels=Labels(np.frombuffer(index.codes, np.int32), list(index.classes)),
        skipped=index.skipped,
        open=lambda i: _read(files, *places[i].tolist()),
        stamp=lambda: file_stamp(files),
    )


class _Index:
    """Where the images of shards lie; only arrays grow with their number."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.places = array("q")
        self.codes = array("i")
        self.classes: dict[str, int] = {}
        self.skipped: list[Skipped] = []
        self._key: tuple[int, str] = (-1, "")
        self._row = self._code = -1

    def add(self, number: int, file: Path, name: str, prefix: str) -> None:
        """Index one shard. What it holds up to damage counts; the damage is noted in `skipped`."""
        names: list[bytes] = []
        try:
            # "r:" refuses compressed shards, which cannot be read at random.
            with file.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                for key, extension, member in _members(tar):
                    if f".{extension}" in SUFFIXES:
                        names.append(os.fsencode(prefix + member.name))
                        self.places.extend((number, member.offset_data, member.size))
                        self.codes.append(-1)
                        self._join((number, key), row=len(self.codes) - 1)
                    elif extension == "cls" and member.size <= MOST_CLASS_BYTES:
                        content = tar.extractfile(member)
                        text = content.read().decode("utf-8", "backslashreplace").strip() if content else ""
                        self._join((number, key), code=self.classes.setdefault(text, len(self.classes)))
        except (tarfile.TarError, OSError) as error:
            advice = "; unpack compressed shards first" if not names else ""
            self.skipped.append(Skipped(path_text(name), f"{reason_of(error)}{advice}"))
        self.chunks.append(pa.array(names, pa.large_binary()))

    def _join(self, key: tuple[int, str], row: int = -1, code: int = -1) -> None:
        """Note an image's row or a class of a sample, and give the one to the other once both are known."""
        if key != self._key:
            self._key, self._row, self._code = key, -1, -1
        self._row, self._code = max(self._row, row), max(self._code, code)
        if self._row >= 0:
            self.codes[self._row] = self._code


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield (key, extension in lower case, member) of the regular files that are not hidden."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # or it keeps an object for every member
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if member.isreg() and stem:
            yield folder + slash + stem, extension.lower(), member


def _read(files: Sequence[Path], shard: int, offset: int, size: int) -> Image.Image:
    try:
        content = read_range(files[shard], offset, size)
    except OSError as error:
        raise UnreadableImage(reason_of(error)) from error
    if len(content) < size:
        raise UnreadableImage(f"{printable(files[shard].name)} ends within it")
    return read_image(io.BytesIO(content))
