"""Write features files, Parquet, `.npz` or CSV, and lists of errors: whole or not at all. The format: `read.py`.

Shapes: B rows of a batch, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from byol import outputs
from byol.files.atomic import atomic_file
from byol.images.shards.schema import DIGEST_KEY
from byol.images.source import Skipped
from byol.outputs import require_output
from byol.serve.features.spreadsheet import csv_writer, is_csv
from byol.serve.features.thumbnails import FIELD, METADATA, column
from byol.text import printable

ERRORS = "errors.parquet"
KINDS = {"float32": pa.float32(), "float16": pa.float16()}
LONGEST_TEXT = 8192  # characters of a name or label in an .npz, where each takes the room of the longest
ROWS_PER_GROUP = 4096  # 32 MB at D = 2048: what the writer holds


class Write(Protocol):
    """Writes some rows: ids, labels, features (B, D), and `thumbnails` where the file has pictures."""

    def __call__(
        self, ids: Sequence[str], labels: Sequence[str | None], features: np.ndarray, thumbnails: Sequence[bytes] = ()
    ) -> None:
        """Raises `ValueError` for features that do not fit the file's type."""


@contextlib.contextmanager
def feature_file(
    path: Path,
    dim: int,
    digest: str,
    dtype: str = "float32",
    notes: dict[str, str] | None = None,
    thumbnails: bool = False,
) -> Iterator[Write]:
    """Yield a function `Write`; the file appears when the block ends well. `thumbnails`: with pictures (Parquet only).

    `.npz` is collected in memory. CSV is written as rows arrive, and so is Parquet, in row groups, with `notes`, as
    they are when the block ends, in its metadata. `dtype`: float32 or float16 (in CSV, rounded to it); write raises
    `ValueError` for features beyond its range.
    """
    with atomic_file(path) as temporary:
        if is_csv(path):
            with csv_writer(temporary, dim) as write:
                yield _narrowed(write, dtype)
            return
        if path.suffix.lower() == ".npz":
            with _npz_writer(temporary, dim, digest, dtype) as write:
                yield _narrowed(write, dtype)
        else:
            with _parquet_writer(temporary, dim, digest, dtype, {} if notes is None else notes, thumbnails) as write:
                yield _narrowed(write, dtype)


def _narrowed(write: Write, dtype: str) -> Write:
    if dtype == "float32":
        return write

    def narrowed(
        ids: Sequence[str], labels: Sequence[str | None], features: np.ndarray, thumbnails: Sequence[bytes] = ()
    ) -> None:
        with np.errstate(over="ignore"):
            narrow = features.astype(dtype)
        if not np.isfinite(narrow).all():
            raise ValueError(f"features of up to {np.abs(features).max():g} do not fit {dtype}; use --dtype float32")
        write(ids, labels, narrow, thumbnails)

    return narrowed


@contextlib.contextmanager
def _parquet_writer(
    path: Path, dim: int, digest: str, dtype: str, notes: dict[str, str], pictures: bool
) -> Iterator[Write]:
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("features", pa.list_(pa.field("element", KINDS[dtype], nullable=False), dim), nullable=False),
            *([FIELD] if pictures else []),
        ],
        metadata={DIGEST_KEY: digest, **(METADATA if pictures else {})},
    )
    pending: list[pa.RecordBatch] = []

    def flush(writer: Any) -> None:
        if pending:
            writer.write_table(pa.Table.from_batches(pending, schema))
            pending.clear()

    # Opened here: pyarrow takes only UTF-8 names.
    with open(path, "wb") as stream, pq.ParquetWriter(stream, schema, use_dictionary=["label"]) as writer:

        def write(
            ids: Sequence[str], labels: Sequence[str | None], features: np.ndarray, thumbnails: Sequence[bytes] = ()
        ) -> None:
            values = pa.array(np.ascontiguousarray(features, dtype).reshape(-1))
            rows = pa.FixedSizeListArray.from_arrays(values, type=schema.field("features").type)
            arrays = [pa.array(ids, pa.string()), pa.array(labels, pa.string()), rows]
            arrays += [column(ids, thumbnails)] if pictures else []
            pending.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
            if sum(batch.num_rows for batch in pending) >= ROWS_PER_GROUP:
                flush(writer)

        yield write
        flush(writer)
        writer.add_key_value_metadata(notes)


@contextlib.contextmanager
def _npz_writer(path: Path, dim: int, digest: str, dtype: str) -> Iterator[Write]:
    all_ids, all_labels, parts = list[str](), list[str | None](), [np.empty((0, dim), dtype)]

    def write(
        ids: Sequence[str], labels: Sequence[str | None], features: np.ndarray, thumbnails: Sequence[bytes] = ()
    ) -> None:
        if max(map(len, [*ids, *filter(None, labels)]), default=0) > LONGEST_TEXT:
            raise ValueError(
                f"{printable(path)}: an image's name or label has more than {LONGEST_TEXT:,} characters, "
                "and .npz would reserve that room in every row; write .parquet"
            )
        all_ids.extend(ids)
        all_labels.extend(labels)
        parts.append(features)

    yield write
    arrays: dict[str, Any] = {"ids": np.array(all_ids, np.str_), "features": np.concatenate(parts)}
    arrays[DIGEST_KEY] = np.array(digest)
    if any(label is not None for label in all_labels):
        arrays["labels"] = np.array([label or "" for label in all_labels], np.str_)
    with open(path, "wb") as stream:
        np.savez(stream, **arrays)  # text and numbers: nothing is pickled


def write_errors(path: Path, listed: Sequence[Skipped], decoded: Sequence[Skipped]) -> None:
    """Write the skipped images (path, stage "list" or "decode", reason); without any, remove an earlier list.

    Raises `ValueError` where another file has that name.
    """
    rows = [("list", item) for item in listed] + [("decode", item) for item in decoded]
    if not rows:
        if outputs.ERRORS.holds(path):
            path.unlink()
        return
    require_output(path, outputs.ERRORS)
    columns = {
        "path": [item.path for _, item in rows],
        "stage": [stage for stage, _ in rows],
        "reason": [item.reason for _, item in rows],
    }
    with atomic_file(path) as temporary, open(temporary, "wb") as stream:
        pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), stream)
