"""Parquet files from strangers: what reading one takes is known, and bounded, before it is taken. Torch-free.

A few KB may claim a trillion rows, refer to one value a million times, or unpack to gigabytes; and the footer may say
otherwise. So the footer is measured before PyArrow decodes it, and the headers of a column's pages before PyArrow
unpacks them: those are what it allocates by.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from byol.limits import limit, most_unpacked
from byol.thrift import read_struct

ROW_BYTES = 16  # that a listing holds of a row at most
READ_AHEAD = 1 << 20  # bytes; without it a whole column of a row group is read before it is unpacked

# Parquet's numbers for kinds of pages, and the field of a page's header that says more of it.
DICTIONARY_PAGE = 2
DETAILS = {0: 5, DICTIONARY_PAGE: 7, 3: 8}
DELTA_BYTE_ARRAY = 7  # an encoding in which a value repeats the one before it


SET_RATIO = "; if you trust the file, set BYOL_MAX_RATIO"


def open_table(stream: BinaryIO, dictionaries: Sequence[str] = ()) -> Any:
    """A `ParquetFile` of an open file, which stays open.

    `dictionaries`: paths of columns of text or bytes, if there, in which values that are repeated are held once. Raises
    `ValueError` when the footer is too large, or counts more than the file can hold, and what PyArrow raises.
    """
    size = stream.seek(0, os.SEEK_END)
    _require_small_footer(stream, size)
    table = _opened(stream)
    rows = group_rows(table.metadata)
    if min(rows, default=0) < 0 or sum(rows) != table.metadata.num_rows:
        raise ValueError("its row groups do not have the rows that it counts")
    if sum(rows) * ROW_BYTES > most_unpacked(size):
        raise ValueError(f"it claims {sum(rows):,} rows in {size:,} bytes{SET_RATIO}")
    columns = {table.metadata.schema.column(i).path for i in range(table.metadata.num_columns)}
    found = [path for path in dictionaries if path in columns]
    return _opened(stream, read_dictionary=found, metadata=table.metadata) if found else table


def _require_small_footer(stream: BinaryIO, size: int) -> None:
    stream.seek(max(0, size - 8))
    footer, most = int.from_bytes(stream.read(4), "little"), limit("BYOL_MAX_HEADER_MB")
    if most << 20 < footer < size:  # a larger one than the file is damage, which PyArrow finds
        raise ValueError(f"its footer has {footer:,} bytes, BYOL_MAX_HEADER_MB is {most}")


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


def group_rows(metadata: Any) -> list[int]:
    """The rows of each row group, as the footer says."""
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def leaf_of(metadata: Any, path: str) -> int:
    """The number of the one column of values at a path. Raises `ValueError` when there are more, or none."""
    found = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == path]
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} columns {path}")
    return found[0]


def leaves_below(metadata: Any, name: str) -> list[int]:
    """The numbers of the columns of values that make up a column."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    return [i for i, path in enumerate(paths) if path == name or path.startswith(f"{name}.")]


def require_small_claim(metadata: Any, group: int, leaf: int) -> int:
    """The bytes that a column of a row group takes once it is unpacked, as the footer says: enough for a listing.

    Raises `ValueError` when that is too much for its bytes in the file.
    """
    chunk = metadata.row_group(group).column(leaf)
    _require_small(chunk, chunk.total_uncompressed_size)
    return int(chunk.total_uncompressed_size)


@dataclass(frozen=True)
class Need:
    """What a column of a row group takes: `size` in bytes if values that repeat are held once; whether any may."""

    size: int
    repeats: bool


def require_small(stream: BinaryIO, metadata: Any, group: int, leaf: int) -> Need:
    """The same by the headers of its pages, with room for each value."""
    chunk, column = metadata.row_group(group).column(leaf), metadata.schema.column(leaf)
    width = max(8, column.length or 0)  # of a number, of the place of a text in its dictionary, of fixed-size bytes
    pages = list(_pages(stream, chunk))
    size = sum(page.unpacked + page.values * (page.unpacked if page.is_delta else width) for page in pages)
    _require_small(chunk, size)
    return Need(size, any(page.is_dictionary for page in pages))


def _require_small(chunk: Any, grown: int) -> None:
    packed = chunk.total_compressed_size
    if grown > most_unpacked(packed):
        raise ValueError(f"{packed:,} bytes of {chunk.path_in_schema:.80} may become {grown:,}{SET_RATIO}")


@dataclass(frozen=True)
class _Page:
    """What a page says of itself: `unpacked` bytes, `values`; `is_delta`: a value may repeat most of the one before."""

    unpacked: int
    values: int
    is_dictionary: bool
    is_delta: bool


def _pages(stream: BinaryIO, chunk: Any) -> Iterator[_Page]:
    """The pages of a column of a row group. Raises `ValueError` when they do not fill its place in the file."""
    if chunk.num_values == 0:  # then no page is read, and there may be no place
        return
    place = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        place = min(place, chunk.dictionary_page_offset)
    end = place + chunk.total_compressed_size
    if not 0 <= place <= end <= stream.seek(0, os.SEEK_END):
        raise ValueError("a column lies outside the file")
    while place < end:
        stream.seek(place)
        header = read_struct(stream)
        kind, unpacked, packed = (_number(header, field) for field in (1, 2, 3))
        place = stream.tell() + packed
        if place > end:
            raise ValueError("a page lies outside its column")
        details = header.get(DETAILS.get(kind, 0)) or {}
        values = _number(details, 1) if kind in DETAILS else 0
        encoding = details.get(4 if kind == 3 else 2)
        yield _Page(unpacked, values, kind == DICTIONARY_PAGE, encoding == DELTA_BYTE_ARRAY)


def _number(header: dict[int, Any], field: int) -> int:
    value = header.get(field)
    if not isinstance(value, int) or value < 0:
        raise ValueError("the header of a page is damaged")
    return value
