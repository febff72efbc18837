"""Features out of Parquet files, one or the parts of a folder: strictly, and into one matrix of a size known before.

Shapes: N rows, B rows of a batch, D features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from byol.files import open_regular
from byol.limits import most_unpacked
from byol.parquet import SET_RATIO, Table, open_table, require_small
from byol.serve.kinds import DIGEST_KEY
from byol.serve.part_listing import naming, row_count
from byol.text import on_one_line, printable

TEXTS = ("id", "label")
COLUMNS = (*TEXTS, "features")
READ_ROWS = 4096
TEXT_BYTES = 64  # of a Python string and its place in a list, beside its characters
MOST_LISTED = 20  # columns that a message names


@dataclass
class Bank:
    """Rows as they are read. `rows` is how many there will be, `most` the bytes that they may take in memory."""

    rows: int
    most: int
    ids: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    x: np.ndarray | None = None

    def add(self, name: str, ids: Any, labels: Any, features: np.ndarray) -> None:
        """Take the rows of a batch: Arrow columns of text (B,), features (B, D). Raises `ValueError`."""
        first, count, width = len(self.ids), len(features), features.shape[1]
        if self.x is None:
            self._spend(name, self.rows * (4 * width + 2 * TEXT_BYTES))
            self.x = np.empty((self.rows, width), np.float32)
        if width != self.x.shape[1]:
            raise ValueError(f"{name}: rows of {width} features after rows of {self.x.shape[1]}")
        if first + count > self.rows:
            raise ValueError(f"{name} has more rows than it says")
        self._spend(name, _text_bytes(ids) + _text_bytes(labels))
        self.x[first : first + count] = features
        self.ids += _plain(ids).to_pylist()
        self.labels += _plain(labels).to_pylist()

    def _spend(self, name: str, size: int) -> None:
        self.most -= size
        if self.most < 0:
            raise ValueError(f"{name}: its rows need more memory than files of their size may{SET_RATIO}")


def read_tables(name: str, files: Sequence[Path]) -> tuple[Bank, str | None]:
    """Files as one, and the digest of their bundle.

    The matrix has the size that their footers say: a bank may fill half of the memory. Raises `ValueError`.
    """
    if not files:
        raise ValueError(f"{name} holds no part-*.parquet")
    bank = Bank(sum(row_count(file) for file in files), most_unpacked(sum(os.path.getsize(file) for file in files)))
    digests = set()
    for file in files:
        with _opened(file) as table:
            digests.add((table.schema_arrow.metadata or {}).get(DIGEST_KEY.encode()))
            if len(digests) > 1:
                raise ValueError(f"{name}: its parts come from different bundles; extract into an empty folder")
            part, first = printable(file), len(bank.ids)
            for batch in table.iter_batches(READ_ROWS, columns=list(COLUMNS)):
                bank.add(part, batch.column("id"), batch.column("label"), _matrix(part, batch.column("features")))
        if None in bank.ids[first:]:
            row = bank.ids.index(None, first) - first  # type: ignore[arg-type]
            raise ValueError(f"{part}: row {row} has no id")
    if len(bank.ids) < bank.rows:
        raise ValueError(f"{name} has fewer rows than it says")
    digest = digests.pop()
    return bank, digest.decode("ascii", "replace") if digest else None


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A features file, its columns and their sizes checked."""
    with naming(file), open_regular(file) as stream:
        table = open_table(stream)
        _check_columns(printable(file), table.file.schema_arrow)
        repeating = [column for column in COLUMNS if _require_small(table, column)]
        yield open_table(stream, [column for column in repeating if column in TEXTS]).file


def _require_small(table: Table, column: str) -> bool:
    """Whether values of a column may be repeated in a row group. Raises `ValueError` when one is too large."""
    groups, leaves = range(len(table.rows)), table.leaves_below(column)
    needs = [require_small(table, group, leaf) for group in groups for leaf in leaves]
    return any(need.repeats for need in needs)


def _check_columns(name: str, schema: Any) -> None:
    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # a category of pandas
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def is_matrix(kind: Any) -> bool:
        lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
        return any(test(kind) for test in lists) and bool(pa.types.is_floating(kind.value_type))

    rules: list[tuple[str, Callable[[Any], bool], str]] = [
        ("id", is_text, "strings"),
        ("label", lambda kind: is_text(kind) or bool(pa.types.is_null(kind)), "strings or nulls"),
        ("features", is_matrix, "lists of floats of one length"),
    ]
    for column, test, wanted in rules:
        if schema.names.count(column) != 1:
            found = on_one_line(", ".join(f"{name:.80}" for name in schema.names[:MOST_LISTED]))
            raise ValueError(f"{name} is not a features file: it needs one column `{column}`, it has {found}")
        if not test(schema.field(column).type):
            kind = f"{schema.field(column).type!s:.80}"
            raise ValueError(f"{name}: column `{column}` must hold {wanted}, found {on_one_line(kind)}")


def _matrix(name: str, column: Any) -> np.ndarray:
    """A list column as float32 (B, D)."""
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    values = column.flatten()
    if column.null_count or values.null_count:
        raise ValueError(f"{name}: the column `features` has nulls")
    if len(lengths) != 1:
        raise ValueError(f"{name}: rows with different numbers of features ({sorted(lengths)[:5]})")
    numbers = np.asarray(values.to_numpy(zero_copy_only=False), np.float32)
    return numbers.reshape(len(column), lengths[0])


def _text_bytes(column: Any) -> int:
    """The bytes of the characters of a text column (B,), those of a dictionary as often as they occur."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    column.validate(full=True)  # or indices may lead out of the dictionary
    lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
    return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)


def _plain(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
