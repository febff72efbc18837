"""Extraction of any number of images into a folder of Parquet parts; an interrupted one goes on where it stopped.

A part holds the features of consecutive images; its metadata says which of them were left out and where it ends, so
that nothing but finished parts is needed to go on. `_manifest.json` says what all parts have in common, and at the end
what they hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from byol.files import atomic_file
from byol.images import ImageSource, Skipped, printable
from byol.locations import Location, is_url
from byol.serve import PART_IMAGES
from byol.serve.encoder import Encoder
from byol.serve.extract import Advance, Extraction, Options, checked_batches, folder
from byol.serve.features import DIGEST_KEY, ERRORS, feature_file, write_errors
from byol.sources import Section, open_sections

MANIFEST = "_manifest.json"
FORMAT = 1
NOTES = "byol"  # the key of a part's notes in its metadata


@dataclass(frozen=True)
class Part:
    """A finished part: rows, what was left out while listing and decoding, and where in the source it ends."""

    rows: int
    end: str
    listed: list[Skipped] = field(default_factory=list)
    decoded: list[Skipped] = field(default_factory=list)

    @property
    def skipped(self) -> list[Skipped]:
        """All that was left out."""
        return [*self.listed, *self.decoded]

    def notes(self) -> str:
        """As text for the file's metadata, from which `read_part` makes it again."""
        return json.dumps({"end": self.end, "listed": _pairs(self.listed), "decoded": _pairs(self.decoded)})


def extract_parts(
    encoder: Encoder, location: Location, out: Path, options: Options, advance: Advance, part_images: int = PART_IMAGES
) -> Extraction:
    """Write the features of a location's images to `out/part-00000.parquet` and so on, in parts of `part_images`.

    Finished parts of the same extraction are kept; `errors.parquet` and the manifest's counts are written at the end.
    Raises `ValueError` when `out` holds another extraction, when the source has changed (a folder of images may: it is
    listed anew behind the last finished part), when more is left out than `options` allow, and when nothing can be
    read.
    """
    start = time.perf_counter()
    settings = {
        "format": FORMAT,
        DIGEST_KEY: encoder.digest,
        "source": _full_name(location),
        "dim": encoder.feature_dim,
        "dtype": options.dtype,
        "part_images": part_images,
    }
    stored = _stored(out, settings)
    parts = list(_finished(out, encoder.digest)) if stored else []
    known = sum(part.rows for part in parts)
    advance(known + sum(len(part.decoded) for part in parts))
    with folder(out):
        if not (stored and stored["complete"] and len(stored["parts"]) == len(parts)):
            for leftover in out.glob(".part-*.tmp"):  # of a killed process
                leftover.unlink()
            try:
                for part in _remaining(encoder, location, out, options, advance, settings, stored, parts):
                    parts.append(part)
                _finish(out, settings, parts, location)
            except BaseException:
                if not any(part.rows for part in parts):  # nothing to go on from
                    for file in (*map(partial(part_file, out), range(len(parts))), out / MANIFEST):
                        file.unlink(missing_ok=True)
                raise
    images, skipped = sum(part.rows for part in parts), [item for part in parts for item in part.skipped]
    return Extraction(images, images - known, skipped, time.perf_counter() - start)


def _full_name(location: Location) -> str:
    """The same for the same place, whatever the current folder is."""
    path = Path(location)
    return printable(path.resolve()) if not is_url(location) and path.exists() else printable(location)


def part_file(out: Path, number: int) -> Path:
    """The file of a part."""
    return out / f"part-{number:05d}.parquet"


def _remaining(
    encoder: Encoder,
    location: Location,
    out: Path,
    options: Options,
    advance: Advance,
    settings: dict[str, Any],
    stored: dict[str, Any] | None,
    parts: list[Part],
) -> Iterator[Part]:
    """Write the parts that are missing, each yielded once it is finished."""
    sections = open_sections(location, settings["part_images"], parts[-1].end if parts else "")
    first = next(sections, None)
    if first is None:  # all parts were finished, but not the manifest
        return
    if stored is None:
        _write_manifest(out, settings | {"stamp": first.stamp, "complete": False})
    elif stored["stamp"] != first.stamp:
        raise ValueError(f"{printable(location)} has changed since {printable(out)} was begun; extract to a new folder")
    settings["stamp"] = first.stamp
    begun: dict[int, Section] = {}

    def sources() -> Iterator[ImageSource]:
        for section in chain([first], sections):
            begun[id(section.source)] = section
            yield section.source

    errors = sum(len(part.skipped) for part in parts)
    batches = checked_batches(encoder, sources(), options, advance, errors)
    for number, (key, group) in enumerate(groupby(batches, key=lambda pair: id(pair[0])), len(parts)):
        section, rows, decoded, notes = begun[key], 0, list[Skipped](), dict[str, str]()
        path = part_file(out, number)
        with feature_file(path, encoder.feature_dim, encoder.digest, options.dtype, notes) as write:
            for source, batch in group:
                indices = batch.indices
                write([source.ids[i] for i in indices], [source.labels[i] for i in indices], batch.outputs)
                rows += len(indices)
                decoded += batch.skipped
            part = Part(rows, section.end, list(section.source.skipped), decoded)
            notes[NOTES] = part.notes()
        del begun[key]
        yield part


def _finish(out: Path, settings: dict[str, Any], parts: list[Part], location: Location) -> None:
    """Write the list of errors and the complete manifest. Raises `ValueError` when no image could be read."""
    rows = sum(part.rows for part in parts)
    listed = [item for part in parts for item in part.listed]
    decoded = [item for part in parts for item in part.decoded]
    if rows == 0:
        raise ValueError(
            f"none of the {len(decoded)} images of {printable(location)} can be read "
            f"(first: {decoded[0].path}: {decoded[0].reason})"
        )
    write_errors(out / ERRORS, listed, decoded)
    files = [
        {"file": part_file(out, number).name, "rows": part.rows, "skipped": len(part.skipped)}
        for number, part in enumerate(parts)
    ]
    counts = {"images": rows, "skipped": len(listed) + len(decoded), "parts": files, "complete": True}
    _write_manifest(out, {"stamp": None, **settings, **counts})


def _write_manifest(out: Path, values: dict[str, Any]) -> None:
    with atomic_file(out / MANIFEST) as temporary:
        temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _stored(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an extraction that was begun in `out`. Raises `ValueError` when it is another one."""
    path, name = out / MANIFEST, printable(out)
    if not path.exists():
        others = sorted(out.glob("part-*.parquet"))
        if others:
            raise ValueError(f"{name} holds {printable(others[0].name)} of another extraction; give an empty folder")
        return None
    try:
        values = json.loads(path.read_bytes())
        differing = [key for key, value in settings.items() if values[key] != value]
        _ = values["complete"], values["stamp"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{printable(path)} cannot be read ({error}); give an empty folder") from error
    if differing:
        texts = (f"{key} {_short(values[key])}, now {_short(settings[key])}" for key in differing)
        raise ValueError(f"{name} holds another extraction: {'; '.join(texts)}; give an empty folder")
    return dict(values)


def _short(value: object) -> str:
    return str(value)[:24]


def _finished(out: Path, digest: str) -> Iterator[Part]:
    """The finished parts of a folder, in order. Raises `ValueError` when one is missing or not of this extraction."""
    files = sorted(out.glob("part-*.parquet"))
    for number, file in enumerate(files):
        if file != part_file(out, number):
            raise ValueError(f"{printable(out)} lacks {part_file(out, number).name}; extract to a new folder")
        yield read_part(file, digest)


def read_part(file: Path, digest: str) -> Part:
    """What a finished part says of itself. Raises `ValueError` when it is damaged or another bundle's."""
    try:
        with open(file, "rb") as stream:
            found = pq.read_metadata(stream)
        metadata = found.metadata or {}
        notes = json.loads(metadata[NOTES.encode()])
        part = Part(found.num_rows, str(notes["end"]), _items(notes["listed"]), _items(notes["decoded"]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{printable(file)} is not a part that can be gone on from ({error}); remove it") from error
    if metadata.get(DIGEST_KEY.encode()) != digest.encode():
        raise ValueError(f"{printable(file)} was extracted with another bundle; give an empty folder")
    return part


def _pairs(items: list[Skipped]) -> list[list[str]]:
    return [list(asdict(item).values()) for item in items]


def _items(pairs: list[list[str]]) -> list[Skipped]:
    return [Skipped(path, reason) for path, reason in pairs]
