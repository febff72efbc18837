"""The parts of a features folder, for its writer and its readers."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from byol.bundle.schema import check, read_object
from byol.files.parquet import open_table
from byol.files.regular import open_regular, read_regular
from byol.images.walk import is_image
from byol.limits import limit
from byol.text import printable, reason_of

MANIFEST = "_manifest.json"
DATA = "data"  # the folder of parts: nothing else lies in it, so every reader of Parquet opens it as one table
LISTS = "_errors"  # the folder of errors.parquet: no pattern for Parquet files finds it, and readers skip it
FLAT = 1  # the format of earlier versions: parts and errors.parquet lie beside the manifest
FORMAT = 2
PART = "part-*.parquet"
MOST_DEPTH = 8  # folders `key=value` in one another
AGAIN = "run its extract command again"


def part_files(folder: Path) -> list[Path]:
    """The parts, sorted by number: as text, part 100000 would come before part 11000.

    They lie in `data`, or as earlier versions wrote them in the folder itself.
    """
    found = list(folder.glob(PART)) or list((folder / DATA).glob(PART))
    return sorted(found, key=lambda file: (part_number(file) or 0, file.name))


def format_of(folder: Path) -> int:
    """The format of an extraction that was begun in a folder, else the present one."""
    try:
        stored = read_manifest(folder) or {}
    except ValueError:  # who reads the manifest says so
        return FORMAT
    return FLAT if stored.get("format") == FLAT else FORMAT


def part_number(file: Path) -> int | None:
    """The number in a part's name; None for another program's file."""
    digits = file.stem.removeprefix("part-")
    return int(digits) if digits.isdecimal() else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, None where there is none. Raises `ValueError` when it cannot be read."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        values = read_object(read_regular(path, limit("BYOL_MAX_HEADER_MB") << 20))
        _require_manifest(values)
    except (OSError, ValueError) as error:
        raise ValueError(f"{printable(path)} cannot be read ({reason_of(error)}); use an empty folder") from error
    return values


def _require_manifest(values: dict[str, Any]) -> None:
    """Raise `BundleError` for a manifest without the fields that every reader uses."""
    check(type(values.get("complete")) is bool, "`complete` must be true or false")
    check(isinstance(values.get("stamp", 0), str | None), "`stamp` must be text or null")
    if values["complete"]:
        parts = values.get("parts")
        check(isinstance(parts, list) and all(map(_is_part, parts)), "`parts` must be a list of files and their rows")


def _is_part(part: Any) -> bool:
    """Whether this is a manifest's entry for a part."""
    return isinstance(part, dict) and isinstance(part.get("file"), str) and type(part.get("rows")) is int


def is_begun(folder: Path) -> bool:
    """Whether an extraction was begun here, though there are no parts (yet, or any more)."""
    try:
        return "bundle_sha256" in (read_manifest(folder) or ())
    except ValueError:  # another program's
        return False


def complete_parts(folder: Path) -> list[Path]:
    """The parts of a folder, as listed by its manifest if it has one.

    Raises `ValueError` when the extraction is unfinished, or a part is missing, unexpected or changed.
    """
    if folder.name == DATA and (folder.parent / MANIFEST).exists():
        folder = folder.parent
    files, manifest = part_files(folder), read_manifest(folder)
    if manifest is None:
        with naming(folder):
            return files or others_files(folder)
    name = printable(folder)
    if not manifest["complete"]:
        raise ValueError(f"{name} is incomplete: its extraction has not finished; {AGAIN}")
    rows = {part["file"]: part["rows"] for part in manifest["parts"]}
    for file in files:
        if file.name not in rows:
            raise ValueError(f"{name}: its manifest does not list {printable(file.name)}; remove it")
        if (found := row_count(file)) != rows[file.name]:
            expected = rows[file.name]
            raise ValueError(f"{printable(file)} has {found} rows, not {expected}; remove it and {AGAIN}")
    missing = rows.keys() - {file.name for file in files}
    if missing:
        raise ValueError(f"{name} is incomplete: {printable(min(missing))} is missing; {AGAIN}")
    return files


def others_files(folder: Path, depth: int = 0) -> list[Path]:
    """The Parquet files of another program's folder and of its `key=value` sub-folders, sorted.

    Names beginning with `.` or `_` do not count. None where images lie beside them, which they then describe.
    Raises `OSError` when a folder cannot be listed.
    """
    if depth > MOST_DEPTH:  # a link leads back
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), folder)
    files, folders = list[Path](), list[Path]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(os.fsencode(entry.name)):
                return []
            if entry.name.lower().endswith(".parquet") and entry.name[0] not in "._" and entry.is_file():
                files.append(Path(entry.path))
            elif "=" in entry.name and entry.name[0] not in "._" and entry.is_dir():
                folders.append(Path(entry.path))
    return sorted(files) + [file for below in sorted(folders) for file in others_files(below, depth + 1)]


def row_count(file: Path) -> int:
    """The rows of a Parquet file. Raises `ValueError` naming it when it is damaged."""
    with naming(file), open_regular(file) as stream:
        return sum(open_table(stream).rows)


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Turn errors while reading a file into a `ValueError` that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if (name := printable(file)) in str(error) and not isinstance(error, OSError):
            raise
        raise ValueError(f"{name} cannot be read as a features file: {reason_of(error)}") from error
