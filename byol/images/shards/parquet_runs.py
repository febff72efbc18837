"""A column of encoded images, read a few pages at a time: a row group may be larger than memory. Torch-free.

PyArrow reads a whole row group of a column, and of a struct's bytes no more than 2 GiB. So a run of pages is taken out
of the file, given a footer of its own, and read as a file of one small row group.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from byol.files.parquet import SET_RATIO, Chunk, Page, pages
from byol.files.regular import SourceUnavailable
from byol.files.thrift import Short, written
from byol.limits import ALWAYS, limit, most_unpacked

LEAST = 1 << 20  # bytes of a run in a local file: few, as streamed training asks for images at random
LEAST_REMOTE = 4 << 20  # behind a URL, where each run is a request; less than `byol.images.remote.path.BLOCK`
MAGIC = b"PAR1"
WIDTH = 8  # bytes of a value's place
BYTE_ARRAY, REQUIRED, OPTIONAL = Short(6), Short(0), Short(1)  # as Parquet numbers them


@dataclass(frozen=True)
class Run:
    """Consecutive pages of a row group: their first row, how many rows, where they are, their bytes in memory.

    `refers`: their values are places in the dictionary; `is_delta`: they may take more than `size`, which nothing says.
    """

    first: int
    rows: int
    place: int
    end: int
    size: int
    refers: bool
    is_delta: bool

    @property
    def end_row(self) -> int:
        """The first row behind it."""
        return self.first + self.rows


class Runs:
    """The runs of a column of a row group of `rows`, found by the headers of its pages when they are asked for.

    `depth`: how many of the column, and of what it lies in, may be null; `least`: bytes of a run but the last.
    """

    def __init__(self, chunk: Chunk, rows: int, depth: int, least: int = LEAST) -> None:
        self._chunk, self._rows, self._depth, self._least = chunk, rows, depth, least
        self._runs: list[Run] = []
        self._dictionary: Page | None = None
        self._broken = ""

    def known(self, row: int) -> Run | None:
        """The run of a row, if it was found before."""
        place = bisect_right(self._runs, row, key=lambda run: run.first) - 1
        return self._runs[place] if place >= 0 and row < self._runs[place].end_row else None

    def find(self, row: int, stream: BinaryIO) -> Run:
        """The run of a row, in the open file. Raises `ValueError` where the pages are damaged, or lack that row."""
        while (run := self.known(row)) is None:
            if self._broken:
                raise ValueError(self._broken)
            try:
                self._runs.append(self._next(stream))
            except SourceUnavailable:
                raise
            except ValueError as error:
                self._broken = str(error)  # kept: each of the rows would have it found again
        return run

    def _next(self, stream: BinaryIO) -> Run:
        last = self._runs[-1] if self._runs else None
        first, start = (last.end_row, last.end) if last else (0, None)
        found: list[Page] = []
        for page in pages(stream, self._chunk, start):
            if page.is_dictionary and not found and not last and not self._dictionary:
                self._dictionary = page
            elif page.is_dictionary:
                raise ValueError("a dictionary comes after values")
            elif found and (page.refers != found[0].refers or page.unpacked > self._least):
                break  # it is a run of its own, or begins one
            else:
                found.append(page)
                if page.end - found[0].place >= self._least:
                    break
        rows = sum(page.values for page in found)
        if not rows or first + rows > self._rows:
            raise ValueError(f"its row group has {first + rows} images for {self._rows} rows")
        size, is_delta = sum(page.unpacked + page.values * WIDTH for page in found), any(p.is_delta for p in found)
        return Run(first, rows, found[0].place, found[-1].end, size, found[0].refers, is_delta)

    def need(self, run: Run) -> int:
        """The bytes that a run takes at least. Raises `ValueError` for more than those in the file may become."""
        packed, size = run.end - run.place, run.size
        if run.refers and self._dictionary:
            packed, size = packed + self._dictionary.end - self._dictionary.place, size + self._dictionary.size(WIDTH)
        if size > most_unpacked(packed):
            raise ValueError(f"{packed:,} bytes of images may become {size:,}{SET_RATIO}")
        if size > limit("BYOL_GROUPS_MB") << 20:
            raise ValueError(f"a page has {size >> 20:,} MB of images, BYOL_GROUPS_MB is {limit('BYOL_GROUPS_MB')}")
        return size

    def read(self, run: Run, stream: BinaryIO) -> Any:
        """The images of a run, a chunked array (rows,) of bytes; those that are the same are held once.

        Raises `ValueError`, and what PyArrow raises.
        """
        dictionary = _bytes(stream, self._dictionary) if run.refers and self._dictionary else b""
        content = _file(dictionary, _bytes(stream, run), self._chunk.codec, run, self._depth)
        path = [".".join("a" * max(1, self._depth))] if dictionary else []
        file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=path)
        table = _little_by_little(file, run) if run.is_delta else file.read(use_threads=False)
        column = table.column(0)
        while pa.types.is_struct(column.type):
            column = pa.chunked_array([chunk.field(0) for chunk in column.chunks])
        column.validate(full=True)  # or indices may lead out of the dictionary
        if len(column) != run.rows:
            raise ValueError(f"its pages have {len(column)} images for {run.rows} rows")
        return column


def _little_by_little(file: Any, run: Run) -> Any:
    """A run whose values repeat one another, as far as it takes no more memory than it may."""
    packed = run.end - run.place
    left = most = min(most_unpacked(packed), limit("BYOL_GROUPS_MB") << 20)
    batches = []
    for batch in file.iter_batches(max(1, ALWAYS // run.size), use_threads=False):  # no value is larger than the run
        batches.append(batch)
        left -= batch.nbytes
        if left < 0:
            raise ValueError(f"{packed:,} bytes of images may become more than {most:,}{SET_RATIO}")
    return pa.Table.from_batches(batches, file.schema_arrow)


def _bytes(stream: BinaryIO, part: Page | Run) -> bytes:
    stream.seek(part.place)
    return stream.read(part.end - part.place)


def _file(dictionary: bytes, content: bytes, codec: int, run: Run, depth: int) -> bytes:
    """A Parquet file of one column, and of one row group: these pages.

    The column lies in as many others as may be null; without any it is required.
    """
    around = [{3: OPTIONAL, 4: b"a", 5: Short(1)} for _ in range(depth - 1)]
    schema = [{4: b"r", 5: Short(1)}, *around, {1: BYTE_ARRAY, 3: OPTIONAL if depth else REQUIRED, 4: b"a"}]
    start, packed = len(MAGIC), len(dictionary) + len(content)
    places = {9: start + len(dictionary)} | ({11: start} if dictionary else {})
    names = [b"a"] * max(1, depth)
    column = {1: BYTE_ARRAY, 2: [Short(0)], 3: names, 4: Short(codec), 5: run.rows, 6: run.size, 7: packed} | places
    group = {1: [{2: start, 3: column}], 2: run.size, 3: run.rows}
    footer = written({1: Short(2), 2: schema, 3: run.rows, 4: [group]})
    return b"".join([MAGIC, dictionary, content, footer, len(footer).to_bytes(4, "little"), MAGIC])
