"""Where a command may write: never over what it reads, nor over a file that byol did not write. Torch-free."""

from __future__ import annotations

import csv
import math
import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from byol.files.places import behind_links, is_mount, require_writable
from byol.files.regular import sha256_of
from byol.images.grid import SOFTWARE
from byol.images.location import Location, local_path, same_place
from byol.images.shards.schema import DIGEST_KEY, PICTURED
from byol.images.walk import is_image
from byol.text import printable, reason_of

THRESHOLD_KEY, KEPT_KEY = "duplicates_threshold", "kept_sha256"
PAIR_COLUMNS = ["id_a", "id_b", "cosine", "against"]
UNFINISHED_ARRAYS = {"key", "next", "leader", "twins", "a", "b", "cosine"}
STAGES = {"list", "decode"}
FEATURE_COLUMNS = ["id", "label", "features"]
CLASS_COLUMNS = ["id", "label", "predicted", "probability"]
ERROR_COLUMNS = ["path", "stage", "reason"]
MOST_HEADER = 1 << 24  # bytes of a CSV file's first line
_HEAD = 8192  # bytes of a page
_DAMAGED = (OSError, ValueError, SyntaxError, zipfile.BadZipFile, csv.Error, pa.ArrowException)


@dataclass(frozen=True)
class Kind:
    """A kind of file that a command writes: its `name` in words; `holds` tells whether byol wrote a given file."""

    name: str
    holds: Callable[[Path], bool]


def require_output(out: Path, kind: Kind, inputs: Iterable[Location | None] = ()) -> None:
    """Raise `ValueError`, before the work, if the file `out` cannot be written or would overwrite something of value.

    Refused: the `inputs` under any spelling, a picture inside an input folder, anything but a regular file, and files
    there unless they are empty or of the same `kind`. Links are followed.
    """
    name = printable(out)
    require_writable(out, Path(os.path.realpath(out)).parent)
    try:
        final = behind_links(out)
        size = final.stat().st_size if final.exists() else 0
    except OSError as error:
        raise ValueError(f"{name} is not writable: {reason_of(error)}; name a file") from error
    _require_apart(out, inputs)
    if is_mount(final):
        raise ValueError(f"{name} is a mount point and cannot be replaced; mount its folder instead")
    if size and not kind.holds(final):
        raise ValueError(f"{name} exists and is not {kind.name} that byol wrote; choose another name, or move it away")


def require_output_folder(out: Path, inputs: Iterable[Location | None] = ()) -> None:
    """The same for an output folder; its writer judges what is already in it."""
    final = Path(os.path.realpath(out))
    if os.path.lexists(final) and not final.is_dir():
        raise ValueError(f"{printable(out)} is not a folder; choose another name")
    _require_apart(out, inputs)
    require_writable(out, final)


def require_not_within(out: Path, inputs: Iterable[Location]) -> None:
    """Raise `ValueError` when a folder that will be replaced is one of the inputs, or holds one."""
    final = os.path.realpath(out)
    for location in inputs:
        if Path(os.path.realpath(local_path(location))).is_relative_to(final):
            raise ValueError(f"{printable(out)} would replace an input ({printable(location)}); choose another name")


def _require_apart(out: Path, inputs: Iterable[Location | None]) -> None:
    for location in inputs:
        if location is not None and same_place(out, location):
            raise ValueError(f"{printable(out)} is an input ({printable(location)}); choose another name")
        if location is not None and _is_picture_in(out, location):
            raise ValueError(
                f"{printable(out)} would become an image of {printable(location)}; write it outside that folder"
            )


def _is_picture_in(out: Path, location: Location) -> bool:
    final = Path(os.path.realpath(out))
    return is_image(os.fsencode(final.name)) and final.is_relative_to(os.path.realpath(local_path(location)))


def _holds(test: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """The test, False for a file that cannot be read."""

    def safe(path: Path) -> bool:
        try:
            return path.is_file() and test(path)
        except (*_DAMAGED, Image.DecompressionBombError):
            return False

    return safe


def _schema(path: Path) -> pa.Schema:
    with open(path, "rb") as stream:
        return pq.read_schema(stream)


def names_in(line: bytes) -> list[str]:
    """The names in the first line of a CSV file. Raises `ValueError` when it is none."""
    try:
        return next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")]), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error


def is_csv_header(names: list[str]) -> bool:
    """Whether these are the columns of features: `id`, `label` if there are any, `f0`, `f1`, ..."""
    texts = [name for name in names[:2] if name in ("id", "label")]
    dim = len(names) - len(texts)
    return texts[:1] == ["id"] and dim > 0 and names == [*texts, *(f"f{number}" for number in range(dim))]


def _is_features(path: Path) -> bool:
    if path.suffix.lower() == ".csv":
        with open(path, "rb") as stream:
            line = stream.readline(MOST_HEADER)
            row = names_in(stream.readline(MOST_HEADER))
        columns = names_in(line)
        ours = columns[:2] == ["id", "label"] and is_csv_header(columns) and line == _quoted(columns)
        return ours and (not row or (len(row) == len(columns) and all(math.isfinite(float(text)) for text in row[2:])))
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
        return names - {"labels"} == {"ids", "features", DIGEST_KEY}
    schema = _schema(path)
    ours = schema.names in (FEATURE_COLUMNS, [*PICTURED])
    return ours and DIGEST_KEY.encode() in (schema.metadata or {})


def _quoted(names: list[str]) -> bytes:
    """The first line of a CSV file as we write it."""
    return ",".join(f'"{name}"' for name in names).encode() + b"\n"


def _is_classes(path: Path) -> bool:
    if path.suffix.lower() == ".csv":
        with open(path, encoding="utf-8", newline="") as stream:
            exact = stream.readline().encode() == _quoted(CLASS_COLUMNS)
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
    """A square of counts whose rows and columns are the same classes; a CSV has no other mark."""
    with open(path, encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream)
        title, *classes = next(rows, [""])
        body = list(islice(rows, len(classes) + 1))
    square = [row[0] for row in body if len(row) == len(classes) + 1] == classes and len(body) == len(classes)
    return title == "class" and bool(classes) and square and all(cell.isdecimal() for row in body for cell in row[1:])


def _is_pairs(path: Path) -> bool:
    schema = _schema(path)
    return schema.names == PAIR_COLUMNS and THRESHOLD_KEY.encode() in (schema.metadata or {})


def _is_unfinished(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()} == UNFINISHED_ARRAYS


def kept_beside(pairs: Path) -> Kind:
    """A list of images to keep, which has no mark of its own: its digest stands in the `pairs` written with it.

    Beside it, that of the list which it replaces a moment later.
    """

    def same(path: Path) -> bool:
        return sha256_of(path).encode() in (_schema(pairs).metadata or {}).get(KEPT_KEY.encode(), b"").split()

    return Kind("a list of images to keep", _holds(same))


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
PAIRS = Kind("a table of duplicates", _holds(_is_pairs))
UNFINISHED = Kind("an unfinished search", _holds(_is_unfinished))
GRID = Kind("a picture of neighbours", _holds(_is_grid))
PAGE = Kind("a report", _holds(_is_page))
