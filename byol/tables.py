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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from byol.columns import Computed, Labels
from byol.images import ImageSource, Skipped, SourceUnavailable, UnreadableImage, read_image
from byol.limits import limit
from byol.parquet import Table, open_table, require_small, require_small_claim
from byol.shard_files import Shard
from byol.stamps import file_stamp
from byol.text import on_one_line, path_text, printable, reason_of

LABELS_READ = 65_536  # rows
MOST_NAMES = 4 << 20  # bytes of Hugging Face's metadata: the names of 100,000 classes
MOST_LISTED = 20  # columns that a message names


# The columns of features, of lists of errors, and of classes: no images, and more of them with every command.
RESULTS = {
    ("id", "label", "features"),
    ("path", "stage", "reason"),
    ("id", "label", "predicted", "probability", "probabilities"),
}


class _Unusable(ValueError):
    """A file that holds no images that can be read. The message is a reason without its name."""


@dataclass(frozen=True)
class _Table:
    """A Parquet file of a listing: `path` is that of its column of bytes, `rows` those of each row group."""

    shard: Shard
    name: str
    path: str
    rows: list[int]
    labels: Labels


def table_source(name: str, files: Sequence[Path], file_names: Sequence[str]) -> ImageSource:
    """The images of some Parquet files, in the order of the files and of their rows; an id is `file name/row`.

    What is no Parquet file, or has no image column, is `skipped`. Raises `ValueError` when all are.
    """
    tables: list[_Table] = []
    skipped: list[Skipped] = []
    for file, file_name in zip(files, file_names, strict=True):
        try:
            table = _listed(file, file_name)
            tables += [table] if table else []
        except _Unusable as error:
            skipped.append(Skipped(path_text(file_name), str(error)))
    if not tables:
        reason = skipped[0].reason if skipped else "holds results of byol, and no images"
        raise ValueError(f"{printable(files[0])} {reason}")
    used = [cast(Path, table.shard.path) for table in tables]  # or a `RemotePath`
    groups = [(table, group) for table in tables for group in range(len(table.rows))]
    starts = _starts([rows for table in tables for rows in table.rows])  # (groups + 1,)
    firsts = _starts([sum(table.rows) for table in tables])  # (tables + 1,)
    store = _Groups(groups)

    def identity(i: int) -> str:
        number, row = _locate(firsts, i)
        return f"{printable(tables[number].name)}/{row}"

    return ImageSource(
        name=name,
        ids=Computed(int(starts[-1]), identity),
        labels=_concatenated([table.labels for table in tables]),
        skipped=skipped,
        open=lambda i: store.image(*_locate(starts, i)),
        stamp=lambda: file_stamp(used),
        content=lambda: file_stamp(used, times=False),
        blocks=starts[:-1],
    )


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *counts], dtype=np.int64)


def _locate(starts: np.ndarray, i: int) -> tuple[int, int]:
    """The run of rows in which row `i` is, and its place there."""
    number = int(np.searchsorted(starts, i, side="right")) - 1
    return number, i - int(starts[number])


# ------------------------------------------------------------------------------------------------------- listing


def _listed(file: Path, name: str) -> _Table | None:
    """A file's table; None for results that byol wrote beside the images. Raises `_Unusable`."""
    shard = Shard(file)
    try:
        with shard.listing() as stream:
            table = open_table(stream, ["label"])
            schema = table.file.schema_arrow
            if tuple(schema.names) in RESULTS and image_column(schema) is None:
                return None
            path = _image_path(schema)
            [leaf] = table.leaves_below(path)
            for group in range(len(table.rows)):
                _require_held(group, require_small_claim(table, group, leaf))
            return _Table(shard, name, path, table.rows, _labels(table))
    except (SourceUnavailable, _Unusable):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _Unusable(f"cannot be read as a Parquet file: {reason_of(error)}") from error


def image_column(schema: Any) -> str | None:
    """The name of a schema's image column, None when there is none or no telling which."""
    able = [field.name for field in schema if _is_binary(field.type) or _has_bytes(field.type)]
    named = [name for name in able if name in ("image", "img")]
    return (named or able)[0] if len(named) == 1 or len(able) == 1 else None


def _has_bytes(kind: Any) -> bool:
    """Whether this is a struct with one field `bytes`, and it is binary."""
    place = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return place >= 0 and _is_binary(kind.field(place).type)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_path(schema: Any) -> str:
    """The path of the column of encoded images."""
    column = image_column(schema)
    if column is None:
        found = ", ".join(f"{field.name:.80} ({field.type!s:.80})" for field in list(schema)[:MOST_LISTED])
        more = f" and {len(schema) - MOST_LISTED} more" if len(schema) > MOST_LISTED else ""
        raise _Unusable(
            "has no image column: it needs one called `image` of encoded images, binary or a struct with "
            f"a field `bytes`; it has {on_one_line(found)}{more}"
        )
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def _labels(table: Table) -> Labels:
    """The column `label`, decoded with the class names of Hugging Face's metadata, a row group at a time."""
    schema = table.file.schema_arrow
    if "label" not in schema.names:
        return Labels.none(sum(table.rows))
    if schema.names.count("label") > 1 or not _is_label(schema.field("label").type):
        kinds = ", ".join(f"{field.type!s:.80}" for field in schema if field.name == "label")
        raise _Unusable(f"has no usable labels: `label` must be one column of text or numbers, found {kinds}")
    names, numbers = _class_names(schema.metadata or {}), dict[str, int]()
    codes = [np.empty(0, np.int32)]
    [leaf] = table.leaves_below("label")
    for group, rows in enumerate(table.rows):
        require_small(table, group, leaf)
        batches = table.file.iter_batches(LABELS_READ, row_groups=[group], columns=["label"])
        found = [_codes(batch.column(0), names, numbers) for batch in batches]
        if sum(map(len, found)) != rows:
            raise _Unusable(f"is damaged: row group {group} has {sum(map(len, found))} labels for {rows} rows")
        codes += found
    return Labels(np.concatenate(codes), list(numbers))


def _is_label(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_primitive, pa.types.is_null)
    return any(test(kind) for test in tests)


def _codes(column: Any, names: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    """A label column as int32 (N,): the places in `numbers`, to which new labels are added; -1 for none."""
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    column.validate(full=True)  # or indices may lead out of the dictionary
    places = [_number(value, names, numbers) for value in column.dictionary.to_pylist()]
    indices = column.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    codes: np.ndarray = np.array([*places, -1], np.int32)[indices]  # the last one is found by -1
    return codes


def _number(value: Any, names: Sequence[str], numbers: dict[str, int]) -> int:
    if value is None or (names and value == -1):  # -1 marks rows without a class
        return -1
    text = names[value] if isinstance(value, int) and 0 <= value < len(names) else str(value)
    return numbers.setdefault(text, len(numbers))


def _class_names(metadata: dict[bytes, bytes]) -> list[str]:
    try:
        text = metadata[b"huggingface"]
        label = json.loads(text if len(text) <= MOST_NAMES else b"")["info"]["features"]["label"]
        return [str(name) for name in label["names"]] if isinstance(label["names"], list) else []
    except (KeyError, TypeError, ValueError, RecursionError):
        return []


def _concatenated(parts: Sequence[Labels]) -> Labels:
    offsets = np.cumsum([0] + [len(part.names) for part in parts[:-1]])
    shifted = [np.where(part.codes < 0, -1, part.codes + o) for part, o in zip(parts, offsets, strict=True)]
    return Labels(np.concatenate(shifted), [name for part in parts for name in part.names])


# ------------------------------------------------------------------------------------------------------- reading


class _Groups:
    """The encoded images of the row groups used last. Safe for many threads: one reads, all decode."""

    def __init__(self, groups: Sequence[tuple[_Table, int]]):
        self._groups = groups
        self._held: OrderedDict[int, tuple[int, Any]] = OrderedDict()  # bytes, and the column or why there is none
        self._lock = threading.Lock()

    def image(self, place: int, row: int) -> Image.Image:
        """Decode a row of a row group. Raises `UnreadableImage`, and `SourceUnavailable` when the file is gone."""
        column = self._column(place)
        if isinstance(column, str):
            raise UnreadableImage(column)
        value = column[row].as_py()
        if value is None:
            raise UnreadableImage("the row holds no image bytes")
        return read_image(io.BytesIO(value))

    def _column(self, place: int) -> Any:
        with self._lock:
            if place not in self._held:
                self._held[place] = self._read(place)
            self._held.move_to_end(place)
            return self._held[place][1]

    def _read(self, place: int) -> tuple[int, Any]:
        """The bytes of a row group, a chunked array (rows,) of binary, and how many; of a damaged one, the reason."""
        table, group = self._groups[place]
        try:
            with table.shard.reading() as stream:
                opened = open_table(stream, [table.path])
                [leaf] = opened.leaves_below(table.path)
                size = require_small(opened, group, leaf).size
                _require_held(group, size)
                self._make_room(size)
                return size, _bytes_of(opened.file, group, table)
        except SourceUnavailable:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            return 0, reason_of(error)  # kept: each of its images would have it read again

    def _make_room(self, size: int) -> None:
        most = limit("BYOL_GROUPS_MB") << 20
        while self._held and size + sum(held for held, _ in self._held.values()) > most:
            self._held.popitem(last=False)


def _require_held(group: int, size: int) -> None:
    most = limit("BYOL_GROUPS_MB")
    if size > most << 20:
        raise ValueError(f"row group {group} has {size >> 20:,} MB of images, BYOL_GROUPS_MB is {most}")


def _bytes_of(file: Any, group: int, table: _Table) -> Any:
    """A row group's images; those that are the same are held once."""
    column = file.read_row_group(group, columns=[table.path]).column(0)
    if pa.types.is_struct(column.type):
        column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    if len(column) != table.rows[group]:
        raise ValueError(f"row group {group} has {len(column)} images for {table.rows[group]} rows")
    column.validate(full=True)  # or indices may lead out of the dictionary
    return column
