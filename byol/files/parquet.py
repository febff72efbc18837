"""Parquet files from strangers: memory is bounded before it is allocated. Torch-free.

A few KB may claim a trillion rows, refer to one value a million times, or unpack to gigabytes; and the footer may say
otherwise. So the footer is read here before PyArrow builds objects of it, and so are the headers of a column's pages
before PyArrow unpacks them: those are what it allocates by. (PyArrow's own view of a footer's columns is not used: an
exception in it ends the process.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from byol.files.thrift import CutOff, Reader, Wanted
from byol.limits import limit, most_unpacked

ROW_BYTES = 16  # that a listing holds of a row at most
READ_AHEAD = 1 << 20  # bytes; without it a whole column of a row group is read before it is unpacked
MOST_COLUMNS = 200_000  # columns of all row groups together; PyArrow takes a KB for each
MOST_VALUES = 8_000_000  # in a footer
MOST_DEPTH = 64  # of columns in columns
PAGE_HEADERS = (1 << 13, 1 << 24)  # bytes; few pages have statistics so long that the second is needed
SET_RATIO = "; if you trust the file, set BYOL_MAX_RATIO"

# The numbers that Parquet gives to fields: https://github.com/apache/parquet-format/blob/master/src/main/thrift
CHILDREN, ROWS = 5, 3
CODEC, VALUES, UNPACKED, PACKED, DATA_PLACE, DICTIONARY_PLACE = 4, 5, 6, 7, 9, 11
COLUMN: Wanted = dict.fromkeys((CODEC, VALUES, UNPACKED, PACKED, DATA_PLACE, DICTIONARY_PLACE))
FOOTER: Wanted = {2: [{CHILDREN: None}], 3: None, 4: [{1: [{3: COLUMN}], ROWS: None}]}
PAGE: Wanted = {1: None, 2: None, 3: None, 5: {1: None, 2: None}, 7: {1: None}, 8: {1: None, 4: None}}
DICTIONARY_PAGE = 2
DETAILS = {0: 5, DICTIONARY_PAGE: 7, 3: 8}  # kind of a page to the field that says more of it
ENCODINGS = {0: 2, 3: 4}
OF_A_DICTIONARY = (2, 8)  # encodings in which values are places in the dictionary
DELTA_BYTE_ARRAY = 7  # an encoding in which a value repeats the beginning of the one before


@dataclass(frozen=True)
class Chunk:
    """A column of a row group, as the footer has it: how many values, bytes in memory and in the file, where; codec."""

    values: int
    unpacked: int
    packed: int
    place: int
    codec: int


@dataclass(frozen=True)
class Table:
    """An open Parquet file: PyArrow's `file`, and of each row group the `rows` and the columns of values."""

    file: Any
    rows: list[int]
    groups: list[list[Chunk]]
    stream: BinaryIO

    def leaves_below(self, name: str) -> list[int]:
        """The numbers of the columns of values that make up a column."""
        paths = (self.file.metadata.schema.column(i).path for i in range(self.file.metadata.num_columns))
        return [i for i, path in enumerate(paths) if path == name or path.startswith(f"{name}.")]


def open_table(stream: BinaryIO, dictionaries: Sequence[str] = ()) -> Table:
    """The Parquet file in an open file, which stays open.

    `dictionaries`: paths of columns of text or bytes, if there, in which values that are repeated are held once. Raises
    `ValueError` when the footer is too large, or counts more than the file can hold, and what PyArrow raises.
    """
    size = stream.seek(0, os.SEEK_END)
    rows, groups = _footer(stream, size)
    if sum(rows) * ROW_BYTES > most_unpacked(size):
        raise ValueError(f"it claims {sum(rows):,} rows in {size:,} bytes{SET_RATIO}")
    file = _opened(stream)
    leaves = file.metadata.num_columns
    if any(len(group) != leaves for group in groups):
        raise ValueError("its row groups lack columns of its schema, or have others")
    columns = {file.metadata.schema.column(i).path for i in range(leaves)}
    if found := [path for path in dictionaries if path in columns]:
        file = _opened(stream, read_dictionary=found, metadata=file.metadata)
    return Table(file, rows, groups, stream)


def _footer(stream: BinaryIO, size: int) -> tuple[list[int], list[list[Chunk]]]:
    """Of each row group the rows and the columns."""
    stream.seek(max(0, size - 8))
    end, most = stream.read(8), limit("BYOL_MAX_HEADER_MB")
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or length > size - 12:
        raise ValueError("not a Parquet file, or cut off" if size else "an empty file")
    if length > most << 20:
        raise ValueError(f"its footer has {length:,} bytes, BYOL_MAX_HEADER_MB is {most}")
    stream.seek(size - 8 - length)
    found = Reader(stream.read(length), MOST_VALUES, MOST_COLUMNS).struct(FOOTER)
    _require_shallow(found.get(2, []))
    groups = found.get(4, [])
    rows = [_number(group, ROWS) for group in groups]
    if sum(rows) != found.get(3):
        raise ValueError("its row groups do not add up to its number of rows")
    return rows, [[_chunk(column.get(3, {})) for column in group.get(1, [])] for group in groups]


def _require_shallow(elements: Sequence[dict[int, Any]]) -> None:
    """The elements of a schema in depth-first order; PyArrow recurses, old versions without an end."""
    left: list[int] = []  # children that are still to come, of each element above
    for element in elements:
        if left:
            left[-1] -= 1
        left.append(element.get(CHILDREN, 0))
        while left and left[-1] <= 0:
            left.pop()
        if len(left) > MOST_DEPTH:
            raise ValueError(f"its columns are nested more than {MOST_DEPTH} deep")


def _chunk(column: dict[int, Any]) -> Chunk:
    place = _number(column, DATA_PLACE)
    first = column.get(DICTIONARY_PLACE, 0)
    if 0 < first < place:
        place = first
    values, unpacked, packed, codec = (_number(column, field) for field in (VALUES, UNPACKED, PACKED, CODEC))
    return Chunk(values, unpacked, packed, place, codec)


def _opened(stream: BinaryIO, **options: Any) -> Any:
    stream.seek(0)
    return pq.ParquetFile(
        stream,
        pre_buffer=False,
        buffer_size=READ_AHEAD,
        thrift_string_size_limit=limit("BYOL_MAX_HEADER_MB") << 20,
        thrift_container_size_limit=limit("BYOL_MAX_ROW_GROUPS"),
        **options,
    )


def require_small_claim(table: Table, group: int, leaf: int) -> int:
    """The unpacked bytes of a column of a row group, as the footer states them: good enough for a listing.

    Raises `ValueError` when that is too much for its bytes in the file.
    """
    chunk = table.groups[group][leaf]
    _require_small(table, leaf, chunk.packed, chunk.unpacked)
    return chunk.unpacked


@dataclass(frozen=True)
class Need:
    """The memory for a column of a row group: `size` in bytes if repeated values are held once; whether any repeat."""

    size: int
    repeats: bool


def require_small(table: Table, group: int, leaf: int) -> Need:
    """The same from the headers of its pages, plus room for each value."""
    chunk, column = table.groups[group][leaf], table.file.metadata.schema.column(leaf)
    width = max(8, column.length or 0)  # of a number, of the place of a text in its dictionary, of fixed-size bytes
    found = list(pages(table.stream, chunk))
    size = sum(page.size(width) for page in found)
    _require_small(table, leaf, chunk.packed, size)
    return Need(size, any(page.is_dictionary for page in found))


def _require_small(table: Table, leaf: int, packed: int, grown: int) -> None:
    if grown > most_unpacked(packed):
        path = table.file.metadata.schema.column(leaf).path
        raise ValueError(f"{packed:,} bytes of {path:.80} may become {grown:,}{SET_RATIO}")


@dataclass(frozen=True)
class Page:
    """A page's header: where the page lies (header included), its bytes in memory, its number of values.

    `refers`: values are places in the dictionary; `is_delta`: a value may repeat most of the previous one.
    """

    place: int
    end: int
    unpacked: int
    values: int
    is_dictionary: bool
    refers: bool
    is_delta: bool

    def size(self, width: int) -> int:
        """The bytes that it may take in memory, with `width` for each value."""
        return self.unpacked + self.values * (self.unpacked if self.is_delta else width)


def pages(stream: BinaryIO, chunk: Chunk, start: int | None = None) -> Iterator[Page]:
    """The pages of a column of a row group, from the one at `start` on.

    Raises `ValueError` when they do not fill its place in the file.
    """
    if chunk.values == 0:  # no pages to read, perhaps no valid place
        return
    place, end = chunk.place if start is None else start, chunk.place + chunk.packed
    if end > stream.seek(0, os.SEEK_END):
        raise ValueError("a column lies outside the file")
    while place < end:
        header, length = _page_header(stream, place)
        kind, unpacked, packed = (_number(header, field) for field in (1, 2, 3))
        begin, place = place, place + length + packed
        if place > end:
            raise ValueError("a page lies outside its column")
        details = header.get(DETAILS.get(kind, 0), {})
        values = _number(details, 1) if kind in DETAILS else 0
        encoding, is_dictionary = details.get(ENCODINGS.get(kind, 0)), kind == DICTIONARY_PAGE
        refers, is_delta = encoding in OF_A_DICTIONARY, encoding == DELTA_BYTE_ARRAY
        yield Page(begin, place, unpacked, values, is_dictionary, refers, is_delta)


def _page_header(stream: BinaryIO, place: int) -> tuple[dict[int, Any], int]:
    """The header of a page and its length."""
    for most in PAGE_HEADERS:
        stream.seek(place)
        reader = Reader(stream.read(most), values=1000)
        try:
            header = reader.struct(PAGE)
        except CutOff:
            continue
        return header, reader.place
    raise CutOff("the header of a page has no end")


def _number(header: dict[int, Any], field: int) -> int:
    value = header.get(field)
    if not isinstance(value, int) or value < 0:
        raise ValueError("a header lacks a number, or has a negative one")
    return value
