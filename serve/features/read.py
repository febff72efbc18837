"""Read features files strictly: Parquet (one file, or a folder of parts), `.npz` and CSV (see `spreadsheet.py`).

Parquet columns: `id` string, `label` string or null, `features` fixed-size list of float32; the schema's metadata
names the bundle. `.npz` arrays: `ids`, `labels` (absent when there are none; "" means none), `features` (N, D),
`bundle_sha256`. Shapes: N images, B batch, D features.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from byol.files.npz import open_arrays
from byol.files.parquet import open_table
from byol.files.regular import open_regular
from byol.images.columns import Labels
from byol.images.labels import labels_of_array
from byol.images.location import Location, is_url
from byol.images.shards.schema import DIGEST_KEY, image_column
from byol.serve.features.listing import complete_parts, is_begun, naming, others_files, part_files
from byol.serve.features.spreadsheet import holds_features, is_csv, read_csv
from byol.serve.features.tables import READ_ROWS, read_tables
from byol.strict_json import require_legal
from byol.text import printable, reason_of


@dataclass(frozen=True)
class Features:
    """Features in memory: `x` float32 (N, D), all finite; `bundle` is the digest of the bundle, None if unknown.

    `why`: why labels are missing, where that needs saying. `places`: where each row's image is in the source that they
    were computed from, int64 (N,); None for features that were read.
    """

    name: str
    ids: list[str]
    labels: list[str | None]
    x: np.ndarray
    bundle: str | None
    why: str = ""
    places: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


def is_features(path: Location) -> bool:
    """Whether this is what `extract` writes: Parquet, a folder of parts, an `.npz` with `features`, CSV with `f0`.

    Parquet with a column of images, and none called `features`, is a source of images. Raises `ValueError` for an
    `.npz` that holds both images and features. A URL counts as images.
    """
    if is_url(path):
        return False
    path = Path(path)
    if path.is_dir():
        parts = part_files(path)
        return is_features(parts[0]) if parts else is_begun(path) or _is_of_others(path)
    if path.suffix.lower() == ".npz":
        return _npz_holds_features(path)
    if is_csv(path):
        return holds_features(path)
    return path.suffix.lower() == ".parquet" and not _holds_images(path)


def read_features(path: str | Path) -> Features:
    """Read a features file or folder.

    Raises `ValueError` for wrong columns, rows of different lengths, non-finite values, no rows, and an incomplete
    extraction.
    """
    require_legal(isinstance(path, str | os.PathLike), "path", path, "the path of a features file or folder")
    path = Path(path)
    name = printable(path)
    if not path.exists():
        raise ValueError(f"{name} does not exist")
    if path.suffix.lower() == ".npz" and not path.is_dir():
        features = _read_npz(name, path)
    elif is_csv(path) and not path.is_dir():
        with naming(path):
            features = Features(name, *read_csv(path), None)
    else:
        folder = path if path.is_dir() else None
        bank, digest = read_tables(name, complete_parts(folder) if folder else [path], folder)
        x = np.empty((0, 1), np.float32) if bank.x is None else bank.x  # no part has a readable image
        features = Features(name, bank.ids, bank.labels, x, digest, bank.why)
    if len(features) == 0:
        raise ValueError(f"{name} holds no features")
    if features.x.shape[1] == 0:
        raise ValueError(f"{name}: its features are empty (N, 0); extract them again")
    chunks = range(0, len(features), READ_ROWS)  # masks of a few rows at a time
    finite = np.concatenate([np.isfinite(features.x[start : start + READ_ROWS]).all(1) for start in chunks])
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise ValueError(f"{name}: {len(bad)} rows have values that are not finite (first: {features.ids[bad[0]]})")
    return features


def _holds_images(path: Path) -> bool:
    schema = _schema(path)  # if unreadable, opening it as features says why
    return schema is not None and "features" not in schema.names and image_column(schema) is not None


def _is_of_others(folder: Path) -> bool:
    """Whether a folder holds another program's features, judged by its first readable Parquet file."""
    try:
        schemas = map(_schema, others_files(folder))
    except OSError:  # opening it as a folder of images says why
        return False
    first = next((schema for schema in schemas if schema is not None), None)
    return first is not None and "features" in first.names


def _schema(path: Path) -> Any:
    """The schema of a Parquet file; None if it cannot be read."""
    try:
        with open_regular(path) as stream:
            return open_table(stream).file.schema_arrow
    except (pa.ArrowException, OSError, ValueError):
        return None


def _npz_holds_features(path: Path) -> bool:
    try:
        with open_regular(path) as stream, open_arrays(stream) as found:
            keys = set(found.names)
    except (OSError, ValueError):  # unreadable: opening it as images says why
        return False
    if {"images", "features"} <= keys:
        raise ValueError(f"{printable(path)} holds both `images` and `features`; keep only one of them")
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
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused
        return Features(name, ids, list(labels), x.astype(np.float32), digest)
