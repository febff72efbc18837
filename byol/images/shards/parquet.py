"""Images in Parquet files: a column of encoded images, as Hugging Face data sets have it. Torch-free.

The image column is called `image` or `img`, or is the only one that can hold images: binary, or a struct with a field
`bytes`. A column `label` (text, or numbers whose names Hugging Face's metadata gives) is the class.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from byol.files.parquet import Chunk, Table, open_table, require_small, require_small_claim
from byol.files.regular import SourceUnavailable
from byol.images.columns import Computed, Labels
from byol.images.labels import can_be_labels, codes_of_column, label_of_folders
from byol.images.picture.read import decode_image
from byol.images.shards.listing import Shard
from byol.images.shards.parquet_runs import LEAST, LEAST_REMOTE, Run, Runs
from byol.images.shards.schema import Unusable, image_column, image_path, is_result
from byol.images.source import ImageSource, Skipped
from byol.images.stamps import file_stamp
from byol.images.surroundings import UnreadableImage
from byol.limits import limit
from byol.text import on_one_line, path_text, printable, reason_of

LABELS_READ = 65_536  # rows
MOST_WALKED = 64  # row groups whose runs are remembered; streamed training is in 16 at a time
MOST_NAMES = 4 << 20  # bytes of Hugging Face's metadata: the names of 100,000 classes


@dataclass(frozen=True)
class _Table:
    """A Parquet file of a listing: `rows` of each row group, where its images are (`chunks`: int64, a `Chunk` each).

    `depth`: how many of the column of bytes, and of what it lies in, may be null.
    """

    shard: Shard
    name: str
    rows: list[int]
    chunks: np.ndarray
    depth: int
    labels: Labels

    def runs(self, group: int) -> Runs:
        """The runs of a row group's pages."""
        least = LEAST_REMOTE if self.shard.is_remote else LEAST
        return Runs(Chunk(*self.chunks[group].tolist()), self.rows[group], self.depth, least)


def table_source(name: str, files: Sequence[Path], file_names: Sequence[str]) -> ImageSource:
    """The images of some Parquet files, in the order of the files and of their rows; an id is `file name/row`.

    Files that are not Parquet, or have no image column, are `skipped`. Raises `ValueError` when all are.
    """
    tables: list[_Table] = []
    skipped: list[Skipped] = []
    for file, file_name in zip(files, file_names, strict=True):
        try:
            table = _listed(file, file_name)
            tables += [table] if table else []
        except Unusable as error:
            skipped.append(Skipped(path_text(file_name), str(error)))
    if not tables:
        reason = skipped[0].reason if skipped else "holds byol results, not images"
        raise ValueError(f"{printable(files[0])} {reason}")
    used = [cast(Path, table.shard.path) for table in tables]  # or a `RemotePath`
    groups = [(table, group) for table in tables for group in range(len(table.rows))]
    starts = _starts([rows for table in tables for rows in table.rows])  # (groups + 1,)
    firsts = _starts([sum(table.rows) for table in tables])  # (tables + 1,)
    store = _Store(groups)

    def identity(i: int) -> str:
        number, row = _locate(firsts, i)
        return f"{printable(tables[number].name)}/{row}"

    return ImageSource(
        name=name,
        ids=Computed(int(starts[-1]), identity),
        labels=_concatenated([table.labels for table in tables]),
        skipped=skipped,
        open=lambda i, least_side=0: store.image(*_locate(starts, i), least_side),
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
    """A file's table; None for results that byol wrote beside the images. Raises `Unusable`."""
    shard = Shard(file)
    try:
        with shard.listing() as stream:
            table = open_table(stream, ["label"])
            schema = table.file.schema_arrow
            if is_result(schema):
                return None
            [leaf] = table.leaves_below(image_path(schema))
            column = table.file.metadata.schema.column(leaf)
            if column.physical_type != "BYTE_ARRAY" or column.max_repetition_level:
                raise Unusable(f"has no bytes in its column {column.path:.80}")
            for group in range(len(table.rows)):
                require_small_claim(table, group, leaf)
            chunks = np.array([astuple(group[leaf]) for group in table.groups], np.int64).reshape(-1, 5)
            return _Table(shard, name, table.rows, chunks, column.max_definition_level, _labels(table, name))
    except (SourceUnavailable, Unusable):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(error) from error


def holds_images(file: Path) -> bool:
    """Whether a Parquet file has images that byol did not write as results. Raises `Unusable` if it cannot be read."""
    try:
        with Shard(file).listing() as stream:
            schema = open_table(stream).file.schema_arrow
            return image_column(schema) is not None and not is_result(schema)
    except SourceUnavailable:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> Unusable:
    return Unusable(f"cannot be read as a Parquet file: {reason_of(error)}")


def _labels(table: Table, name: str) -> Labels:
    """The column `label`, decoded with the class names of Hugging Face's metadata, a row group at a time.

    Without such a column, a folder `label=CLASS` says it.
    """
    schema, images = table.file.schema_arrow, sum(table.rows)
    if "label" not in schema.names:
        return Labels.all(label_of_folders(name.split("/")[:-1]), images)
    kinds = [field.type for field in schema if field.name == "label"]
    if len(kinds) > 1 or not can_be_labels(kinds[0]):
        listed = on_one_line(", ".join(f"{kind!s:.80}" for kind in kinds))
        return Labels.all(None, images, f"`label` must be one column of text or numbers, found {listed}")
    names, numbers = _class_names(schema.metadata or {}), dict[str, int]()
    codes = [np.empty(0, np.int32)]
    [leaf] = table.leaves_below("label")
    for group, rows in enumerate(table.rows):
        require_small(table, group, leaf)
        batches = table.file.iter_batches(LABELS_READ, row_groups=[group], columns=["label"])
        found = [codes_of_column(batch.column(0), numbers, names) for batch in batches]
        if sum(map(len, found)) != rows:
            raise Unusable(f"is damaged: row group {group} has {sum(map(len, found))} labels for {rows} rows")
        codes += found
    return Labels(np.concatenate(codes), list(numbers))


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
    names = [name for part in parts for name in part.names]
    return Labels(np.concatenate(shifted), names, next((part.why for part in parts if part.why), ""))


# ------------------------------------------------------------------------------------------------------- reading


class _Store:
    """The encoded images of the runs of pages used last. Safe for many threads: one reads, all decode."""

    def __init__(self, groups: Sequence[tuple[_Table, int]]):
        self._groups = groups
        self._runs: OrderedDict[int, Runs] = OrderedDict()  # of the row groups used last
        self._held: OrderedDict[tuple[int, int], tuple[int, Any]] = OrderedDict()  # bytes; images, or why none
        self._size = 0  # bytes of all that is held
        self._lock = threading.Lock()

    def image(self, place: int, row: int, least_side: int) -> Image.Image:
        """Decode a row of a row group, as `decode_image`. Raises `SourceUnavailable` when the file is gone, too."""
        with self._lock:
            first, column = self._column(place, row)
        if isinstance(column, str):
            raise UnreadableImage(column)
        value = column[row - first].as_py()
        if value is None:
            raise UnreadableImage("the row holds no image bytes")
        return decode_image(value, least_side)

    def _column(self, place: int, row: int) -> tuple[int, Any]:
        """The first row of the run that a row is in, and the run's images, or why there are none."""
        runs = self._runs_of(place)
        run = runs.known(row)
        if run and (place, run.first) in self._held:
            self._held.move_to_end((place, run.first))
            return run.first, self._held[place, run.first][1]
        try:
            with self._groups[place][0].shard.reading() as stream:
                run = runs.find(row, stream)
                size = runs.need(run)
                self._make_room(size)
                column = runs.read(run, stream)
                size = max(size, column.nbytes)
                self._make_room(size)
                return self._hold(place, run, size, column)
        except SourceUnavailable:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            # Kept: each of the images would have the run read again.
            return self._hold(place, run, 0, reason_of(error)) if run else (row, reason_of(error))

    def _runs_of(self, place: int) -> Runs:
        if place not in self._runs:
            table, group = self._groups[place]
            self._runs[place] = table.runs(group)
        self._runs.move_to_end(place)
        if len(self._runs) > MOST_WALKED:
            self._runs.popitem(last=False)
        return self._runs[place]

    def _hold(self, place: int, run: Run, size: int, column: Any) -> tuple[int, Any]:
        self._held[place, run.first] = size, column
        self._size += size
        return run.first, column

    def _make_room(self, size: int) -> None:
        most = limit("BYOL_GROUPS_MB") << 20
        while self._held and self._size + size > most:
            self._size -= self._held.popitem(last=False)[1][0]
