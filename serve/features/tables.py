"""Read features strictly from Parquet files, one or a folder of parts, into one matrix allocated in advance.

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

from byol.files.parquet import SET_RATIO, Table, open_table, require_small
from byol.files.regular import open_regular
from byol.images.labels import can_be_labels, codes_of_column, label_of_folders
from byol.images.shards.schema import DIGEST_KEY
from byol.limits import most_unpacked
from byol.serve.features.listing import PART, naming, row_count
from byol.text import on_one_line, printable

TEXTS = ("id", "label")
COLUMNS = (*TEXTS, "features")
READ_ROWS = 4096
TEXT_BYTES = 64  # of a Python string and its place in a list, beside its characters
MOST_LISTED = 20  # columns that a message names


@dataclass
class Bank:
    """Rows as they are read: `rows` is their final number, `most` the bytes they may take in memory.

    `why`: why labels are missing, where that needs saying.
    """

    rows: int
    most: int
    ids: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    x: np.ndarray | None = None
    why: str = ""
    _classes: dict[str, int] = field(default_factory=dict)
    _file: str = ""
    _first: int = 0

    def begin(self, file: str) -> None:
        """Start another file: rows added from now on belong to it."""
        self._file, self._first = file, len(self.ids)

    def add(self, ids: Any, labels: Any, features: np.ndarray) -> None:
        """Add the rows of a batch: features (B, D), and Arrow columns (B,) of ids and labels.

        Without ids (None) rows are numbered; a single label, or None, applies to all. Raises `ValueError`.
        """
        first, count, width = len(self.ids), len(features), features.shape[1]
        if self.x is None:
            self._spend(self.rows * (4 * width + 2 * TEXT_BYTES))
            self.x = np.empty((self.rows, width), np.float32)
        if width != self.x.shape[1]:
            raise ValueError(f"{self._file}: rows have {width} features, earlier rows {self.x.shape[1]}")
        if first + count > self.rows:
            raise ValueError(f"{self._file} has more rows than its footer says")
        self.x[first : first + count] = features
        self.ids += map(str, range(first, first + count)) if ids is None else self._texts(ids)
        self.labels += [labels] * count if labels is None or isinstance(labels, str) else self._names(labels)

    def _texts(self, column: Any) -> Iterator[str]:
        self._spend(_text_bytes(column))
        ids = _plain(column).to_pylist()
        if None in ids:
            raise ValueError(f"{self._file}: row {len(self.ids) - self._first + ids.index(None)} has no id")
        return map(str, ids)

    def _names(self, column: Any) -> list[str | None]:
        known = len(self._classes)
        codes = codes_of_column(column, self._classes)
        classes = list(self._classes)
        self._spend(sum(TEXT_BYTES + len(label) for label in classes[known:]))
        return [classes[code] if code >= 0 else None for code in codes]

    def _spend(self, size: int) -> None:
        self.most -= size
        if self.most < 0:
            raise ValueError(f"{self._file}: its rows need more memory than a file of this size may take{SET_RATIO}")


def read_tables(name: str, files: Sequence[Path], folder: Path | None = None) -> tuple[Bank, str | None]:
    """Read files (of a `folder`, if given) as one; returns the rows and the digest of their bundle.

    The matrix is allocated once, as the footers say: a bank may fill half of the memory. Raises `ValueError`.
    """
    if not files:
        raise ValueError(f"{name} holds no {PART}")
    bank = Bank(sum(row_count(file) for file in files), most_unpacked(sum(os.path.getsize(file) for file in files)))
    digests = set()
    for file in files:
        with _opened(file) as table:
            digests.add((table.schema_arrow.metadata or {}).get(DIGEST_KEY.encode()))
            if len(digests) > 1:
                raise ValueError(f"{name}: its parts come from different bundles; extract into an empty folder")
            label = label_of_folders(file.relative_to(folder).parts[:-1] if folder else ())
            _add(bank, printable(file), table, label)
    if len(bank.ids) < bank.rows:
        raise ValueError(f"{name} has fewer rows than its footer says")
    digest = digests.pop()
    return bank, digest.decode("ascii", "replace") if digest else None


def _add(bank: Bank, name: str, table: Any, label: str | None) -> None:
    """Add a file's rows; `label` applies to all where the file has no such column."""
    schema = table.schema_arrow
    columns = [column for column in COLUMNS if column in schema.names]
    if "label" in columns and not can_be_labels(kind := schema.field("label").type):
        columns.remove("label")
        bank.why = on_one_line(f"`label` must hold text or numbers, found {kind!s:.80}")
    bank.begin(name)
    for batch in table.iter_batches(READ_ROWS, columns=columns):
        ids = batch.column("id") if "id" in columns else None
        labels = batch.column("label") if "label" in columns else label
        bank.add(ids, labels, _matrix(name, batch.column("features")))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a features file and check its columns and their sizes."""
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
    if schema.names.count("features") != 1 or any(schema.names.count(column) > 1 for column in TEXTS):
        found = on_one_line(", ".join(f"{name:.80}" for name in schema.names[:MOST_LISTED]))
        raise ValueError(
            f"{name} is not a features file: it needs one column `features` and at most one `id` and `label`; "
            f"found {found}"
        )
    rules: list[tuple[str, Callable[[Any], bool], str]] = [
        ("id", _is_name, "text or whole numbers"),
        ("features", _is_matrix, "lists of floats of one length"),
    ]
    for column, test, wanted in rules:
        if column in schema.names and not test(schema.field(column).type):
            kind = f"{schema.field(column).type!s:.80}"
            raise ValueError(f"{name}: column `{column}` must hold {wanted}, found {on_one_line(kind)}")


def _is_name(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # a category of pandas
    return kind in (pa.string(), pa.large_string(), pa.string_view()) or bool(pa.types.is_integer(kind))


def _is_matrix(kind: Any) -> bool:
    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    return any(test(kind) for test in lists) and bool(pa.types.is_floating(kind.value_type))


def _matrix(name: str, column: Any) -> np.ndarray:
    """A list column as float32 (B, D)."""
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    values = column.flatten()
    if column.null_count or values.null_count:
        raise ValueError(f"{name}: the column `features` has nulls")
    if len(lengths) != 1:
        raise ValueError(f"{name}: rows have different numbers of features ({sorted(lengths)[:5]})")
    numbers = np.asarray(values.to_numpy(zero_copy_only=False), np.float32)
    return numbers.reshape(len(column), lengths[0])


def _text_bytes(column: Any) -> int:
    """The bytes of a text column's (B,) characters, dictionary values counted as often as they occur."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    column.validate(full=True)  # indices may point outside the dictionary
    lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
    return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)


def _plain(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
