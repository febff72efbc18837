"""A folder of Parquet parts: its files, the notes inside each finished part, and their manifest.

A part holds the features of consecutive images; its metadata says which images were skipped and where it ends, so an
extraction resumes from finished parts alone. `_manifest.json` holds the settings common to all parts and, at the end,
their list; `_errors/errors.parquet` the skipped images. The parts lie alone in `data`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from byol import outputs
from byol.bundle.manifest import ENCODER, GRAPHS
from byol.bundle.schema import check, read_object
from byol.files.atomic import atomic_file, made_folder
from byol.files.locks import LOCK
from byol.files.names import leftovers_in
from byol.files.parquet import open_table
from byol.files.regular import open_regular
from byol.images.location import is_url, last_part
from byol.images.picture.pages import Several
from byol.images.shards.schema import DIGEST_KEY
from byol.images.source import Skipped
from byol.outputs import require_output
from byol.serve.features.listing import (
    AGAIN,
    DATA,
    FLAT,
    LISTS,
    MANIFEST,
    PART,
    format_of,
    part_files,
    part_number,
    read_manifest,
)
from byol.serve.features.write import ERRORS, write_errors
from byol.text import on_one_line, printable

SOURCE, SOURCE_DIGEST = "source", "source_sha256"
END = re.compile(r"row:[0-9]{1,18}|path:([0-9a-f]{2})*")
THUMBNAILS = "thumbnails"  # in a manifest only where there are any
NOTES = "byol"  # the key of a part's notes in its metadata


@dataclass(frozen=True)
class Part:
    """A finished part: its rows, what was skipped while listing and decoding, and where in the source it ends.

    `start`: where the part before it ended; parts of earlier versions do not say. `several`: the images that are the
    first of several pictures.
    """

    rows: int
    end: str
    listed: list[Skipped] = field(default_factory=list)
    decoded: list[Skipped] = field(default_factory=list)
    start: str | None = None
    several: Several = field(default_factory=Several)

    @property
    def skipped(self) -> list[Skipped]:
        """Everything that was skipped."""
        return [*self.listed, *self.decoded]

    def notes(self) -> dict[str, str]:
        """The part as metadata of its file; `read_part` reads it back."""
        notes = {"end": self.end, "listed": _pairs(self.listed), "decoded": _pairs(self.decoded), "start": self.start}
        more = {"several": self.several.values()} if self.several.count else {}
        return {NOTES: json.dumps(notes | more)}


class PartsFolder:
    """The parts of one extraction. `settings` are common to all of them and include the bundle's digest.

    An extraction that an earlier version began goes on in its own format. `errors` is the file that lists what was
    skipped.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        layout = format_of(path)
        self.path, self.name, self.settings = path, printable(path), {"format": layout, **settings}
        self._data = path if layout == FLAT else path / DATA
        self.errors = errors_of_folder(path)

    def part_file(self, number: int) -> Path:
        """The file of a part."""
        return self._data / f"part-{number:05d}.parquet"

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, None when nothing was begun here. Raises `ValueError` when it belongs to another extraction."""
        require_output(self.errors, outputs.ERRORS)
        values = read_manifest(self.path)
        if values is None:
            others = part_files(self.path)
            if others:
                other = printable(others[0].name)
                raise ValueError(f"{self.name} holds {other} of another extraction; use an empty folder")
            return None
        if SOURCE_DIGEST not in values and isinstance(values.get(SOURCE), str):  # begun by an earlier version
            values |= named_source(printable(values[SOURCE]))
        keys = [*self.settings, *({THUMBNAILS} - self.settings.keys())]
        texts = [_difference(key, values, self.settings) for key in keys if values.get(key) != self.settings.get(key)]
        if texts:
            listed = "; ".join(filter(None, texts))
            raise ValueError(f"{self.name} holds another extraction: {listed}; use an empty folder")
        return values

    def begin(self, stamp: str | None) -> None:
        """Write the manifest of an incomplete extraction."""
        self._data.mkdir(exist_ok=True)
        self._write(self.settings | {"stamp": stamp, "complete": False})

    def finish(self, parts: dict[int, Part]) -> None:
        """Write the list of errors and the complete manifest."""
        begun = self.manifest()
        self.list_errors(parts)
        files = [
            {"file": self.part_file(number).name, "rows": part.rows, "skipped": len(part.skipped)}
            for number, part in parts.items()
        ]
        rows = sum(part.rows for part in parts.values())
        skipped = sum(len(part.skipped) for part in parts.values())
        counts = {"images": rows, "skipped": skipped, "parts": files, "complete": True}
        self._write({"stamp": None} | (begun or self.settings) | counts)

    def list_errors(self, parts: dict[int, Part]) -> None:
        """Write the list of what these parts skipped."""
        listed = [item for part in parts.values() for item in part.listed]
        decoded = [item for part in parts.values() for item in part.decoded]
        with made_folder(self.errors.parent):
            write_errors(self.errors, listed, decoded)
        self._tidy()

    def _write(self, values: dict[str, Any]) -> None:
        with atomic_file(self.path / MANIFEST) as temporary:
            temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

    def finished(self) -> dict[int, Part]:
        """The finished parts by number, in order. Raises `ValueError` for a damaged one or another bundle's."""
        return {_number(file): read_part(file, self.settings[DIGEST_KEY]) for file in part_files(self.path)}

    def whole(self) -> dict[int, Part] | None:
        """The parts of a complete extraction, None when work is left. Raises `ValueError` like `finished`."""
        stored = self.manifest()
        finished = self.finished() if stored else {}
        if (self.path / LOCK).exists() or not (stored and stored["complete"] and len(stored["parts"]) == len(finished)):
            return None
        return finished

    def sweep(self) -> None:
        """Remove the half-written files of killed processes; call it only while holding the folder's lock."""
        for folder in {self.path, self._data, self.errors.parent}:
            if folder.is_dir():
                for leftover in leftovers_in(folder, (PART, MANIFEST, ERRORS)):
                    leftover.unlink()

    def clear(self) -> None:
        """Remove the parts and the manifest."""
        for file in (*part_files(self.path), self.path / MANIFEST):
            file.unlink(missing_ok=True)
        self._tidy()

    def _tidy(self) -> None:
        """Remove folders of ours that hold nothing."""
        for folder in {self._data, self.errors.parent} - {self.path}:
            with contextlib.suppress(OSError):  # it does hold something, or is not there
                folder.rmdir()


def errors_of_folder(folder: Path) -> Path:
    """The file that lists what an extraction into a folder skipped."""
    return (folder if format_of(folder) == FLAT else folder / LISTS) / ERRORS


def read_part(file: Path, digest: str) -> Part:
    """Read a finished part. Raises `ValueError` when it is damaged or another bundle's."""
    try:
        with open_regular(file) as stream:
            table = open_table(stream)
            metadata = table.file.metadata.metadata or {}
        notes = read_object(metadata.get(NOTES.encode(), b""))
        listed, decoded = _items(notes, "listed"), _items(notes, "decoded")
        several = Several.read(notes.get("several"))
        part = Part(sum(table.rows), _end(notes), listed, decoded, _start(notes), several)
    except OSError as error:
        if error.errno is not None:  # the disk's, or too many open files: the part may be fine
            raise
        raise _damaged(file, error) from error
    except (pa.ArrowException, ValueError) as error:
        raise _damaged(file, error) from error
    if metadata.get(DIGEST_KEY.encode()) != digest.encode():
        raise ValueError(f"{printable(file)} was extracted with another bundle; use an empty folder")
    return part


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{printable(file)} is not a usable part ({error}); remove it and {AGAIN}")


def _number(file: Path) -> int:
    number = part_number(file)
    if number is None:
        raise ValueError(f"{printable(file)} is not a part of an extraction; remove it")
    return number


def named_source(full_name: str) -> dict[str, str]:
    """A manifest's entries for a source: a URL, or the last part of a local path, and a digest of the full name.

    Whoever receives the features has no business knowing the folders above.
    """
    name = full_name if is_url(full_name) else last_part(full_name)
    return {SOURCE: name, SOURCE_DIGEST: hashlib.sha256(full_name.encode()).hexdigest()}


def _difference(key: str, values: dict[str, Any], settings: dict[str, Any]) -> str:
    """A setting's stored and present values; for two encoders of one bundle, their variants.

    Of a source's digest, which tells nobody anything, what it means; empty where the name says enough.
    """
    stored, now = values.get(key, "none"), settings.get(key, "none")
    if key == DIGEST_KEY:
        (old, _, graph), (new, _, other) = str(stored).partition("/"), str(now).partition("/")
        if old == new:
            return f"variant {_variant(graph)}, now {_variant(other)}"
        stored, now = old[:12], new[:12]
    if key == SOURCE_DIGEST:
        name = settings.get(SOURCE)
        moved = f"source {name!s:.200}, now one of that name in another folder (if it has moved, move it back)"
        return on_one_line(moved) if values.get(SOURCE) == name else ""
    return on_one_line(f"{key} {stored!s:.200}, now {now!s:.200}")


def _variant(graph: str) -> str:
    return GRAPHS.get(graph or ENCODER, graph)


def _pairs(items: list[Skipped]) -> list[list[str]]:
    return [list(asdict(item).values()) for item in items]


def _items(notes: dict[str, Any], key: str) -> list[Skipped]:
    pairs = notes.get(key)
    check(isinstance(pairs, list) and all(map(_is_pair, pairs)), f"`{key}` must be a list of paths and reasons")
    return [Skipped(path, reason) for path, reason in pairs or ()]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _start(notes: dict[str, Any]) -> str | None:
    start = notes.get("start")
    fits = start is None or (isinstance(start, str) and (not start or END.fullmatch(start)))
    check(bool(fits), "`start` must be a row or a path")
    return start


def _end(notes: dict[str, Any]) -> str:
    """Where the part ends, as `byol.images.open.open_sections` says it."""
    end = notes.get("end")
    check(isinstance(end, str) and bool(END.fullmatch(end)), "`end` must be a row or a path")
    return str(end)
