"""Features files: Parquet (one file, or a folder of parts) and `.npz`. Written whole or not at all, read strictly.

Parquet columns: `id` string, `label` string or null, `features` fixed-size list of float32; the schema's metadata
names the bundle. `.npz` arrays: `ids`, `labels` (left out when there are none; "" means none), `features` (N, D),
`bundle_sha256`. Shapes: N images, B batch, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from byol import kinds
from byol.files.atomic import atomic_file, open_regular
from byol.files.npz import open_arrays
from byol.files.parquet import open_table
from byol.images.columns import Labels
from byol.images.labels import labels_of_array
from byol.images.location import Location, is_url
from byol.images.shards.parquet import image_column
from byol.images.source import Skipped
from byol.kinds import DIGEST_KEY
from byol.outputs import require_output
from byol.serve.features.listing import complete_parts, is_begun, others_files, part_files
from byol.serve.features.tables import READ_ROWS, read_tables
from byol.text import printable, reason_of

ERRORS = "errors.parquet"
KINDS = {"float32": pa.float32(), "float16": pa.float16()}
LONGEST_TEXT = 8192  # characters of a name or label in an .npz, where each takes the room of the longest
ROWS_PER_GROUP = 4096  # 32 MB at D = 2048: what the writer holds

Write = Callable[[Sequence[str], Sequence[str | None], np.ndarray], None]


@dataclass(frozen=True)
class Features:
    """Features in memory: `x` float32 (N, D), all finite; `bundle` is the digest of the bundle, None if unknown.

    `why`: what there is to say of missing labels; empty where that is plain.
    """

    name: str
    ids: list[str]
    labels: list[str | None]
    x: np.ndarray
    bundle: str | None
    why: str = ""

    def __len__(self) -> int:
        return len(self.ids)


# -------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def feature_file(
    path: Path, dim: int, digest: str, dtype: str = "float32", notes: dict[str, str] | None = None
) -> Iterator[Write]:
    """Give a function write(ids, labels, features (B, D)); the file takes its name when the block ends well.

    `.npz` is collected in memory; Parquet is written in row groups as rows arrive, and with `notes`, as they are when
    the block ends, in its metadata. `dtype`: float32 or float16; write raises `ValueError` for features beyond it.
    """
    with atomic_file(path) as temporary:
        if path.suffix.lower() == ".npz":
            with _npz_writer(temporary, dim, digest, dtype) as write:
                yield _narrowed(write, dtype)
        else:
            with _parquet_writer(temporary, dim, digest, dtype, {} if notes is None else notes) as write:
                yield _narrowed(write, dtype)


def _narrowed(write: Write, dtype: str) -> Write:
    if dtype == "float32":
        return write

    def narrowed(ids: Sequence[str], labels: Sequence[str | None], features: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            narrow = features.astype(dtype)
        if not np.isfinite(narrow).all():
            raise ValueError(f"features of up to {np.abs(features).max():g} do not fit {dtype}; use --dtype float32")
        write(ids, labels, narrow)

    return narrowed


@contextlib.contextmanager
def _parquet_writer(path: Path, dim: int, digest: str, dtype: str, notes: dict[str, str]) -> Iterator[Write]:
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("features", pa.list_(pa.field("element", KINDS[dtype], nullable=False), dim), nullable=False),
        ],
        metadata={DIGEST_KEY: digest},
    )
    pending: list[pa.RecordBatch] = []

    def flush(writer: Any) -> None:
        if pending:
            writer.write_table(pa.Table.from_batches(pending, schema))
            pending.clear()

    # Opened here, as pyarrow takes no names that are not UTF-8.
    with open(path, "wb") as stream, pq.ParquetWriter(stream, schema, use_dictionary=["label"]) as writer:

        def write(ids: Sequence[str], labels: Sequence[str | None], features: np.ndarray) -> None:
            values = pa.array(np.ascontiguousarray(features, dtype).reshape(-1))
            rows = pa.FixedSizeListArray.from_arrays(values, type=schema.field("features").type)
            arrays = [pa.array(ids, pa.string()), pa.array(labels, pa.string()), rows]
            pending.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
            if sum(batch.num_rows for batch in pending) >= ROWS_PER_GROUP:
                flush(writer)

        yield write
        flush(writer)
        writer.add_key_value_metadata(notes)


@contextlib.contextmanager
def _npz_writer(path: Path, dim: int, digest: str, dtype: str) -> Iterator[Write]:
    ids: list[str] = []
    labels: list[str | None] = []
    parts = [np.empty((0, dim), dtype)]

    def write(new_ids: Sequence[str], new_labels: Sequence[str | None], features: np.ndarray) -> None:
        if max(map(len, [*new_ids, *filter(None, new_labels)]), default=0) > LONGEST_TEXT:
            raise ValueError(
                f"{printable(path)}: an image's name or label has more than {LONGEST_TEXT:,} characters, "
                "for which NumPy takes as much room in every row; write .parquet"
            )
        ids.extend(new_ids)
        labels.extend(new_labels)
        parts.append(features)

    yield write
    arrays: dict[str, Any] = {"ids": np.array(ids, np.str_), "features": np.concatenate(parts)}
    arrays[DIGEST_KEY] = np.array(digest)
    if any(label is not None for label in labels):
        arrays["labels"] = np.array([label or "" for label in labels], np.str_)
    with open(path, "wb") as stream:
        np.savez(stream, **arrays)  # of text and numbers: nothing that would be pickled


def write_errors(path: Path, listed: Sequence[Skipped], decoded: Sequence[Skipped]) -> None:
    """Write what was left out (path, stage "list" or "decode", reason), or remove an earlier list when nothing was.

    Raises `ValueError` where another file stands under the name.
    """
    rows = [("list", item) for item in listed] + [("decode", item) for item in decoded]
    if not rows:
        if kinds.ERRORS.holds(path):
            path.unlink()
        return
    require_output(path, kinds.ERRORS)
    columns = {
        "path": [item.path for _, item in rows],
        "stage": [stage for stage, _ in rows],
        "reason": [item.reason for _, item in rows],
    }
    with atomic_file(path) as temporary, open(temporary, "wb") as stream:
        pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), stream)


# -------------------------------------------------------------------------------------------------- reading


def is_features(path: Location) -> bool:
    """Whether this is what `extract` writes: Parquet, a folder of parts, an `.npz` with `features`.

    Parquet with a column of images, and none called `features`, is a source of images. Raises `ValueError` for an
    `.npz` that holds both images and features. What lies behind a URL is taken for images.
    """
    if is_url(path):
        return False
    path = Path(path)
    if path.is_dir():
        parts = part_files(path)
        return is_features(parts[0]) if parts else is_begun(path) or _is_of_others(path)
    if path.suffix.lower() == ".npz":
        return _npz_holds_features(path)
    return path.suffix.lower() == ".parquet" and not _holds_images(path)


def read_features(path: str | Path) -> Features:
    """Read a features file or folder.

    Raises `ValueError` for wrong columns, rows of different length, values that are not finite, no rows, and for a
    folder whose extraction is not complete.
    """
    path = Path(path)
    name = printable(path)
    if not path.exists():
        raise ValueError(f"{name} does not exist")
    if path.suffix.lower() == ".npz" and not path.is_dir():
        features = _read_npz(name, path)
    else:
        folder = path if path.is_dir() else None
        bank, digest = read_tables(name, complete_parts(folder) if folder else [path], folder)
        x = np.empty((0, 1), np.float32) if bank.x is None else bank.x  # no part has an image that could be read
        features = Features(name, bank.ids, bank.labels, x, digest, bank.why)
    if len(features) == 0:
        raise ValueError(f"{name} holds no features")
    if features.x.shape[1] == 0:
        raise ValueError(f"{name}: the features have no dimension")
    chunks = range(0, len(features), READ_ROWS)  # a mask of some rows only
    finite = np.concatenate([np.isfinite(features.x[start : start + READ_ROWS]).all(1) for start in chunks])
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise ValueError(f"{name}: {len(bad)} rows have values that are not finite (first: {features.ids[bad[0]]})")
    return features


def _holds_images(path: Path) -> bool:
    schema = _schema(path)  # where it cannot be read, whoever opens it as features says why
    return schema is not None and "features" not in schema.names and image_column(schema) is not None


def _is_of_others(folder: Path) -> bool:
    """Whether another program's features are in a folder: in the first of its Parquet files that can be read."""
    try:
        schemas = map(_schema, others_files(folder))
    except OSError:  # whoever opens it as a folder of images says why
        return False
    first = next((schema for schema in schemas if schema is not None), None)
    return first is not None and "features" in first.names


def _schema(path: Path) -> Any:
    """Of a Parquet file; None where it cannot be read."""
    try:
        with open_regular(path) as stream:
            return open_table(stream).file.schema_arrow
    except (pa.ArrowException, OSError, ValueError):
        return None


def _npz_holds_features(path: Path) -> bool:
    try:
        with open_regular(path) as stream, open_arrays(stream) as found:
            keys = set(found.names)
    except (OSError, ValueError):  # not readable: whoever opens it as images says why
        return False
    if {"images", "features"} <= keys:
        raise ValueError(f"{printable(path)} holds `images` and `features`; which are meant? keep one of them")
    return "features" in keys


def _read_npz(name: str, path: Path) -> Features:
    try:
        with open_regular(path) as stream, open_arrays(stream) as archive:
            keys = [key for key in ("ids", "labels", "features", DIGEST_KEY) if key in archive.names]
            arrays = {key: archive.read(key) for key in keys}
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as a features file: {reason_of(error)}") from error
    x = arrays.get("features")
    if x is None or x.ndim != 2 or not np.issubdtype(x.dtype, np.floating):
        found = "none" if x is None else f"{x.dtype} {x.shape}"
        raise ValueError(f"{name}: `features` must be floating point (N, D), found {found}")
    for key in ("ids", "labels"):
        if key in arrays and arrays[key].shape != (len(x),):
            raise ValueError(f"{name}: `{key}` must have shape ({len(x)},), found {arrays[key].shape}")
    ids = [str(i) for i in arrays.get("ids", np.arange(len(x)))]
    labels = Labels.none(len(x)) if "labels" not in arrays else labels_of_array(arrays["labels"])
    digest = str(arrays[DIGEST_KEY]) if DIGEST_KEY in arrays else None
    with np.errstate(over="ignore"):  # what is beyond float32 is refused as not finite
        return Features(name, ids, list(labels), x.astype(np.float32), digest)
