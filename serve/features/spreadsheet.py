"""Features as CSV, for spreadsheets and programs that read nothing else: columns `id`, `label`, `f0`, `f1`, ...

Numbers are the shortest decimals that give the same float32 again. Names are as spreadsheets may have them
(`byol.text.cell`). Nothing says which bundle made them. Shapes: N rows, B rows of a batch, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from byol.files.regular import open_regular
from byol.images.columns import Labels
from byol.images.labels import codes_of_column
from byol.outputs import MOST_HEADER, is_csv_header, names_in
from byol.text import cell

TEXTS = ("id", "label")
BLOCK = 1 << 24  # bytes that are parsed at a time: a row is never larger


def is_csv(path: Path) -> bool:
    """Whether a file's name says that it is CSV."""
    return path.suffix.lower() == ".csv"


def cells(texts: Iterable[str | None]) -> pa.Array:
    """Texts as a column that no spreadsheet computes."""
    return pa.array([None if text is None else cell(text) for text in texts], pa.string())


@contextlib.contextmanager
def csv_writer(path: Path, dim: int) -> Iterator[Callable[..., None]]:
    """Yield a function write(ids, labels, features (B, D))."""
    schema = pa.schema(
        [
            *(pa.field(name, pa.string()) for name in TEXTS),
            *(pa.field(f"f{number}", pa.float32()) for number in range(dim)),
        ]
    )
    with open(path, "wb") as stream, pa.csv.CSVWriter(stream, schema) as writer:

        def write(ids: Sequence[str], labels: Sequence[str | None], features: np.ndarray, _: object = ()) -> None:
            columns = np.ascontiguousarray(features.T, np.float32)
            writer.write_batch(pa.record_batch([cells(ids), cells(labels), *map(pa.array, columns)], schema=schema))

        yield write


def holds_features(path: Path) -> bool:
    """Whether a CSV file has the columns of features."""
    try:
        with open_regular(path) as stream:
            return is_csv_header(names_in(stream.readline(MOST_HEADER)))
    except (OSError, ValueError):
        return False


def read_csv(path: Path) -> tuple[list[str], list[str | None], np.ndarray]:
    """The ids, labels and features (N, D) of a CSV file; an empty cell is no label. Raises `ValueError` or Arrow's."""
    with open_regular(path) as stream:
        names = names_in(stream.readline(MOST_HEADER))
        if not is_csv_header(names):
            raise ValueError("its columns must be id, label (may be absent), f0, f1, ...")
        stream.seek(0)
        numbers = [name for name in names if name not in TEXTS]
        kinds = dict.fromkeys(TEXTS, pa.string()) | dict.fromkeys(numbers, pa.float32())
        ids, codes, rows, classes = list[str](), list[np.ndarray](), list[np.ndarray](), dict[str, int]()
        for batch in _batches(stream, kinds):
            if batch.column("id").null_count:
                raise ValueError("a row has no id")
            ids += batch.column("id").to_pylist()
            if "label" in names:
                codes.append(codes_of_column(batch.column("label"), classes))
            rows.append(np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in numbers], axis=1))
    x = np.concatenate(rows) if rows else np.empty((0, 1), np.float32)
    labels = Labels(np.concatenate(codes), list(classes)) if codes else Labels.none(len(ids))
    return ids, list(labels), x


def _batches(stream: Any, kinds: dict[str, pa.DataType]) -> Iterable[pa.RecordBatch]:
    """The rows of a file. Empty cells are null, also in a column of numbers, where they count as not finite."""
    options = pa.csv.ConvertOptions(
        column_types=kinds, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    reading = pa.csv.ReadOptions(block_size=BLOCK, use_threads=False)
    reader: Iterable[pa.RecordBatch] = pa.csv.open_csv(stream, reading, convert_options=options)
    return reader
