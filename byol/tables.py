"""Images in Parquet files: a column of encoded images, as Hugging Face data sets have it. Torch-free.

The image column is called `image` or `img`, or is the only one that can hold images: binary, or a struct with a field
`bytes`. A column `label` (text, or numbers whose names Hugging Face's metadata gives) is the class.
"""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from byol.columns import Computed, Labels
from byol.images import ImageSource, UnreadableImage, read_image
from byol.stamps import file_stamp
from byol.text import printable, reason_of

GROUPS_HELD = 24  # row groups in memory: the streamed order visits 16 at a time


def table_source(name: str, files: Sequence[Path], file_names: Sequence[str]) -> ImageSource:
    """The images of some Parquet files, in the order of the files and of their rows; an id is `file name/row`.

    Raises `ValueError` for a file that is no Parquet file or has no image column.
    """
    groups: list[tuple[int, int]] = []  # file, row group
    rows: list[int] = []
    labels: list[Labels] = []
    columns: list[str] = []
    for number, file in enumerate(files):
        try:
            with file.open("rb") as stream, pq.ParquetFile(stream) as table:
                columns.append(_require_image_column(printable(file), table.schema_arrow))
                groups += [(number, group) for group in range(table.num_row_groups)]
                rows += [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
                labels.append(_labels(table))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{printable(file)} cannot be read as a Parquet file: {reason_of(error)}") from error
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)  # (groups + 1,)
    first_rows = {number: int(starts[place]) for place, (number, _) in reversed(list(enumerate(groups)))}
    store = _Groups(files, columns, groups)

    def locate(i: int) -> tuple[int, int]:
        place = int(np.searchsorted(starts, i, side="right")) - 1
        return place, i - int(starts[place])

    def identity(i: int) -> str:
        number = groups[locate(i)[0]][0]
        return f"{printable(file_names[number])}/{i - first_rows[number]}"

    return ImageSource(
        name=name,
        ids=Computed(int(starts[-1]), identity),
        labels=_concatenated(labels),
        skipped=[],
        open=lambda i: store.image(*locate(i)),
        stamp=lambda: file_stamp(files),
        blocks=starts[:-1],
    )


def image_column(schema: Any) -> str | None:
    """The name of a schema's image column, None when there is none or no telling which."""
    able = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in able if name in ("image", "img")]
    return (named or able)[0] if len(named) == 1 or len(able) == 1 else None


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_images(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _require_image_column(name: str, schema: Any) -> str:
    column = image_column(schema)
    if column is None:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(
            f"{name} has no image column: it needs one called `image` of encoded images, binary or a struct with "
            f"a field `bytes`; it has {found}"
        )
    return column


def _labels(table: Any) -> Labels:
    """The column `label`, decoded with the class names of Hugging Face's metadata."""
    count: int = table.metadata.num_rows
    if "label" not in table.schema_arrow.names:
        return Labels.none(count)
    column = table.read(columns=["label"]).column("label").combine_chunks().dictionary_encode()
    values = column.dictionary.to_pylist()
    names = _class_names(table.schema_arrow.metadata or {})
    codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    none = [value is None or (bool(names) and value == -1) for value in values]  # -1 marks rows without a class
    codes = np.where(np.isin(codes, np.flatnonzero(none)), -1, codes)
    texts = [names[v] if isinstance(v, int) and 0 <= v < len(names) else str(v) for v in values]
    return Labels(codes, texts)


def _class_names(metadata: dict[bytes, bytes]) -> list[str]:
    try:
        label = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
        return [str(name) for name in label["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _concatenated(parts: Sequence[Labels]) -> Labels:
    offsets = np.cumsum([0] + [len(part.names) for part in parts[:-1]])
    shifted = [np.where(part.codes < 0, -1, part.codes + o) for part, o in zip(parts, offsets, strict=True)]
    return Labels(np.concatenate(shifted), [name for part in parts for name in part.names])


class _Groups:
    """The encoded images of the row groups used last. Safe for many threads: one reads, all decode."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str], groups: Sequence[tuple[int, int]]):
        self._files, self._columns, self._groups = files, columns, groups
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, place: int, row: int) -> Image.Image:
        """Decode a row of a row group. Raises `UnreadableImage`."""
        try:
            value = self._column(place)[row].as_py()
        except (pa.ArrowException, OSError) as error:
            raise UnreadableImage(reason_of(error)) from error
        if value is None:
            raise UnreadableImage("the row holds no image bytes")
        return read_image(io.BytesIO(value))

    def _column(self, place: int) -> Any:
        with self._lock:
            if place in self._held:
                self._held.move_to_end(place)
            else:
                self._held[place] = self._read(place)
                if len(self._held) > GROUPS_HELD:
                    self._held.popitem(last=False)
            return self._held[place]

    def _read(self, place: int) -> Any:
        """The bytes of a row group, a chunked array (rows,) of binary."""
        number, group = self._groups[place]
        name = self._columns[number]
        with self._files[number].open("rb") as stream, pq.ParquetFile(stream) as table:
            nested = pa.types.is_struct(table.schema_arrow.field(name).type)
            column = table.read_row_group(group, columns=[f"{name}.bytes" if nested else name]).column(0)
        return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks]) if nested else column
