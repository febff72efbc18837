"""What the files that commands write are known by, those of earlier versions too: only such are written over."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from byol.outputs import Kind

DIGEST_KEY = "bundle_sha256"
SOFTWARE = "byol"  # in a PNG's text chunk of that name, and in a page's `generator`
STAGES = {"list", "decode"}
CLASS_COLUMNS = ["id", "label", "predicted", "probability"]
ERROR_COLUMNS = ["path", "stage", "reason"]
_HEAD = 8192  # bytes of a page
_DAMAGED = (OSError, ValueError, SyntaxError, zipfile.BadZipFile, csv.Error, pa.ArrowException)


def _holds(test: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """A file that cannot be read as its kind is not of it."""

    def safe(path: Path) -> bool:
        try:
            return path.is_file() and test(path)
        except (*_DAMAGED, Image.DecompressionBombError):
            return False

    return safe


def _schema(path: Path) -> pa.Schema:
    with open(path, "rb") as stream:
        return pq.read_schema(stream)


def _is_features(path: Path) -> bool:
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
        return names - {"labels"} == {"ids", "features", DIGEST_KEY}
    schema = _schema(path)
    return schema.names == ["id", "label", "features"] and DIGEST_KEY.encode() in (schema.metadata or {})


def _is_classes(path: Path) -> bool:
    if path.suffix.lower() == ".csv":
        with open(path, encoding="utf-8", newline="") as stream:
            exact = stream.readline() == ",".join(f'"{name}"' for name in CLASS_COLUMNS) + "\n"
            first = next(csv.reader(stream), None)
        return exact and (first is None or (len(first) == len(CLASS_COLUMNS) and 0 <= float(first[3]) <= 1))
    schema = _schema(path)
    return schema.names == [*CLASS_COLUMNS, "probabilities"] and b"classes" in (schema.metadata or {})


def _is_errors(path: Path) -> bool:
    if _schema(path).names != ERROR_COLUMNS:
        return False
    with open(path, "rb") as stream, pq.ParquetFile(stream) as table:
        batch = next(table.iter_batches(batch_size=1000, columns=["stage"]), None)
    return batch is not None and set(batch.column("stage").to_pylist()) <= STAGES


def _is_confusion(path: Path) -> bool:
    """A square of counts whose rows and columns are the same classes: the form is all that a CSV can be known by."""
    with open(path, encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream)
        title, *classes = next(rows, [""])
        body = list(islice(rows, len(classes) + 1))
    square = [row[0] for row in body if len(row) == len(classes) + 1] == classes and len(body) == len(classes)
    return title == "class" and bool(classes) and square and all(cell.isdecimal() for row in body for cell in row[1:])


def _is_grid(path: Path) -> bool:
    with Image.open(path, formats=["PNG"]) as image:
        return image.info.get("Software") == SOFTWARE


def _is_page(path: Path) -> bool:
    with open(path, "rb") as stream:
        head = stream.read(_HEAD)
    earlier = b"byol report</title>" in head and b"Content-Security-Policy" in head
    return head.startswith(b"<!doctype html>") and (b'name="generator" content="byol' in head or earlier)


FEATURES = Kind("a features file", _holds(_is_features))
CLASSES = Kind("a table of classes", _holds(_is_classes))
ERRORS = Kind("a list of errors", _holds(_is_errors))
CONFUSION = Kind("a confusion matrix", _holds(_is_confusion))
GRID = Kind("a picture of neighbours", _holds(_is_grid))
PAGE = Kind("a report", _holds(_is_page))
