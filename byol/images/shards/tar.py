"""WebDataset shards: `.tar` files read at random, through an index made by one pass over their headers. Torch-free.

A sample is the files that share a key (path up to the first dot of the file's name): one image, and the text of
`.cls` as its class. The `webdataset` library reads a stream from its start, which rules out a shuffle over all images
and an exact resume; an index gives both.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image

from byol.images.columns import Labels, Names
from byol.images.labels import label_in
from byol.images.picture.read import decode_image
from byol.images.shards.listing import Shard
from byol.images.shards.tar_members import Damaged, Member, members
from byol.images.source import ImageSource, Skipped
from byol.images.stamps import file_stamp
from byol.images.surroundings import UnreadableImage
from byol.images.walk import NOT_READ, NOT_READ_REASON, SUFFIXES, is_image
from byol.text import path_text, printable, reason_of

MOST_CLASS_BYTES = 1024  # of a `.cls` file
MOST_NAME = 4096  # bytes: no system unpacks longer ones, and every copy of a table would hold them


def tar_source(name: str, files: Sequence[Path], file_names: Sequence[str]) -> ImageSource:
    """The images of some shards, in the order of the shards and of the files in them.

    An id is the member's name, behind the shard's in `file_names` where there are several.
    """
    index = _Index()
    shards = [Shard(file) for file in files]
    for number, (shard, file_name) in enumerate(zip(shards, file_names, strict=True)):
        index.add(number, shard, file_name, f"{file_name}/" if len(files) > 1 else "")
    places = np.frombuffer(index.places, np.int64).reshape(-1, 3)  # (N, 3): shard, offset, size
    return ImageSource(
        name=name,
        ids=Names.of(index.chunks),
        labels=Labels(np.frombuffer(index.codes, np.int32), list(index.classes)),
        skipped=index.skipped,
        open=lambda i, least_side=0: _read(shards, places[i], least_side),
        stamp=lambda: file_stamp(files),
        content=lambda: file_stamp(files, times=False),
    )


class _Index:
    """Where the images of shards lie; only arrays grow with their number."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.places = array("q")
        self.codes = array("i")
        self.classes: dict[str, int] = {}
        self.skipped: list[Skipped] = []
        self._key: tuple[int, bytes] = (-1, b"")
        self._rows, self._code = list[int](), -1
        self._unsure: list[bytes] = []  # images of the sample by a longer extension

    def add(self, number: int, shard: Shard, name: str, prefix: str) -> None:
        """Index one shard. What it holds up to damage counts; the damage is noted in `skipped`."""
        names: list[bytes] = []
        try:
            with shard.listing() as stream:
                for member in members(stream):
                    self._member(number, stream, member, os.fsencode(prefix), names)
        except (Damaged, OSError) as error:
            self.skipped.append(Skipped(path_text(name), reason_of(error)))
        self._end_sample()
        self.chunks.append(pa.array(names, pa.large_binary()))

    def _member(self, number: int, stream: BinaryIO, member: Member, prefix: bytes, names: list[bytes]) -> None:
        folder, slash, base = member.name.rpartition(b"/")
        if any(part.startswith(b".") and part != b"." for part in (*folder.split(b"/"), base)):
            return  # hidden
        stem, dot, extension = base.partition(b".")
        if len(member.name) > MOST_NAME:
            self.skipped.append(Skipped(path_text(member.name[:200]) + "...", f"a name of {len(member.name):,} bytes"))
            return
        path, key = prefix + member.name, (number, folder + slash + stem)
        if member.name.lower().endswith(NOT_READ):
            self.skipped.append(Skipped(path_text(path), NOT_READ_REASON))
        elif is_image(base) and member.kind:
            self.skipped.append(Skipped(path_text(path), member.kind))
        elif (dot + extension).lower().decode("latin-1") in SUFFIXES:
            names.append(path)
            self.places.extend((number, member.offset, member.size))
            self.codes.append(-1)
            self._join(key, row=len(self.codes) - 1)
        elif is_image(base):
            self._join(key)
            self._unsure.append(path)
        elif extension.lower() == b"cls" and member.size <= MOST_CLASS_BYTES and not member.kind:
            stream.seek(member.offset)
            label = label_in(stream.read(member.size).decode("utf-8", "backslashreplace").strip())
            if label is not None:
                self._join(key, code=self.classes.setdefault(label, len(self.classes)))

    def _join(self, key: tuple[int, bytes], row: int = -1, code: int = -1) -> None:
        """Note an image's row or a class of a sample."""
        if key != self._key:
            self._end_sample()
            self._key = key
        self._rows += [row] if row >= 0 else []
        self._code = max(self._code, code)

    def _end_sample(self) -> None:
        """Give all images of the sample its class.

        Beside one, `x.mask.png` belongs to the sample `x`; alone it may be meant as an image.
        """
        for row in self._rows:
            self.codes[row] = self._code
        if not self._rows:
            reason = "a sample's image is KEY.png, with no other dot in its name; rename it"
            self.skipped += (Skipped(path_text(path), reason) for path in self._unsure)
        self._rows, self._code, self._unsure = [], -1, []


def _read(shards: Sequence[Shard], place: np.ndarray, least_side: int) -> Image.Image:
    number, offset, size = place.tolist()
    shard = shards[number]
    try:
        content = shard.read(offset, size)
    except OSError as error:
        raise UnreadableImage(reason_of(error)) from error
    if len(content) < size:
        raise UnreadableImage(f"{printable(shard.path.name)} ends within it")
    return decode_image(content, least_side)
