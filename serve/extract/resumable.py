"""Extraction of any number of images into a folder of Parquet parts; an interrupted one resumes where it stopped."""

from __future__ import annotations

import contextlib
import errno
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, groupby, takewhile
from pathlib import Path
from typing import Any

from byol.files.atomic import made_folder
from byol.files.locks import only_writer_in
from byol.images.location import Location, is_url
from byol.images.open import Section, open_sections
from byol.images.picture.pages import Several
from byol.images.shards.schema import DIGEST_KEY
from byol.images.source import ImageSource, Skipped
from byol.serve.extract.engine import Advance, Engine, Extraction, Options, checked_batches
from byol.serve.features.parts import THUMBNAILS, Part, PartsFolder, named_source
from byol.serve.features.write import feature_file
from byol.serve.limits import PART_IMAGES
from byol.text import printable

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """An extraction: the images of `location`, in parts of `part_images`, into the folder `out`.

    `retry_skipped`: redo finished parts that skipped images.
    """

    location: Location
    out: Path
    options: Options
    part_images: int = PART_IMAGES
    retry_skipped: bool = False

    def is_done(self, number: int, finished: dict[int, Part]) -> bool:
        """Whether a part is finished and need not be redone."""
        return number in finished and not (self.retry_skipped and finished[number].skipped)

    def kept(self, finished: dict[int, Part]) -> dict[int, Part]:
        """The finished parts that need not be redone."""
        return {number: part for number, part in finished.items() if self.is_done(number, finished)}

    def folder(self, digest: str, dim: int) -> PartsFolder:
        """The folder, for the encoder named `digest` with `dim` features."""
        settings = {
            DIGEST_KEY: digest,
            **named_source(_full_name(self.location)),
            "dim": dim,
            "dtype": self.options.dtype,
            "part_images": self.part_images,
            **({THUMBNAILS: self.options.thumbnails} if self.options.thumbnails else {}),
        }
        return PartsFolder(self.out, settings)


@dataclass(frozen=True)
class Share:
    """One worker's parts: those whose number modulo `count` is `index`."""

    index: int = 0
    count: int = 1


ALL = Share()


def _full_name(location: Location) -> str:
    """A location's name, whatever the current folder."""
    path = Path(location)
    return printable(path.resolve()) if not is_url(location) and path.exists() else printable(location)


def extract_parts(engine: Engine, task: Task, advance: Advance) -> Extraction:
    """Write the features of a location's images to `out/data/part-00000.parquet`, `part-00001.parquet`, ...

    Finished parts of the same extraction are kept; the list of errors and the manifest's counts are written at the end.
    Raises `ValueError` when `out` holds another extraction, the source has changed (a folder may, behind the finished
    parts: it is listed anew), more images are skipped than `options` allow, or none can be read.
    """
    parts = task.folder(engine.digest, engine.feature_dim)

    def compute(stored: Manifest | None, finished: dict[int, Part]) -> None:
        fill(engine, task, parts, stored, finished, advance)

    return complete(task, parts, advance, compute)


def complete(
    task: Task, parts: PartsFolder, advance: Advance, compute: Callable[[Manifest | None, dict[int, Part]], None]
) -> Extraction:
    """Let `compute` write the missing parts, given the manifest and the parts found; then finish the folder.

    Raises `BlockingIOError` while another process works on the folder.
    """
    start = time.perf_counter()
    finished = parts.whole()
    if finished is not None and len(task.kept(finished)) < len(finished):
        finished = None  # some parts are to be redone
    was_complete, known = finished is not None, 0
    if finished is not None:
        known = _count_known(finished, advance)
        _require_enough(finished, task)
    else:
        with made_folder(task.out), only_writer_in(parts.path):
            stored = parts.manifest()  # first: another extraction is refused before anything is removed
            parts.sweep()
            found = parts.finished() if stored else {}
            known = _count_known(task.kept(found), advance)
            try:
                compute(stored, found)
                finished = parts.finished()
                _require_joined(finished, task, parts)
                _require_enough(finished, task)
                parts.finish(finished)
            except BaseException as error:
                _leave(parts, begun_here=stored is None)
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    text = "make room and run the same command again; finished parts are kept"
                    raise ValueError(f"no space is left on the disk of {parts.name}; {text}") from error
                raise
    rows, skipped = (sum(part.rows for part in finished.values()), [s for p in finished.values() for s in p.skipped])
    several = sum((part.several for part in finished.values()), Several())
    return Extraction(rows, rows - known, skipped, time.perf_counter() - start, was_complete, several)


def _count_known(finished: dict[int, Part], advance: Advance) -> int:
    """The rows that exist already; the images skipped beside them count as done."""
    rows = sum(part.rows for part in finished.values())
    advance(rows + sum(len(part.decoded) for part in finished.values()))
    return rows


def _leave(parts: PartsFolder, begun_here: bool) -> None:
    """After a failure, keep finished parts and list what they skipped."""
    with contextlib.suppress(
        OSError, ValueError
    ):  # a full disk, too many open files: the first error is reported anyway
        finished = parts.finished()
        if begun_here and not any(part.rows for part in finished.values()):
            parts.clear()
        else:
            parts.list_errors(finished)


def _require_joined(finished: dict[int, Part], task: Task, parts: PartsFolder) -> None:
    """Each process lists the images for itself: a part must begin where the one before ends, or it goes.

    Otherwise images would be missing between two parts, or in both, where files came or went between two listings.
    """
    ends = {0: "", **{number + 1: part.end for number, part in finished.items()}}
    apart = [number for number, part in finished.items() if part.start not in (None, ends.get(number, part.start))]
    if apart:
        for number in apart:
            parts.part_file(number).unlink()
        raise ValueError(
            f"{printable(task.location)} has changed while it was extracted; run the same command again: it makes "
            f"{len(apart)} of {len(finished)} parts anew"
        )


def _require_enough(finished: dict[int, Part], task: Task) -> None:
    unread = [item for part in finished.values() for item in part.decoded]
    if unread and not any(part.rows for part in finished.values()):
        raise ValueError(
            f"none of the {len(unread)} images of {printable(task.location)} can be read "
            f"(first: {unread[0].path}: {unread[0].reason})"
        )
    left_out, most = sum(len(part.skipped) for part in finished.values()), task.options.max_errors
    if most is not None and left_out > most:  # of all workers together; each stops at its own count
        raise ValueError(f"{left_out} images were skipped; that is more than --max-errors {most}")


def fill(
    engine: Engine,
    task: Task,
    parts: PartsFolder,
    stored: Manifest | None,
    finished: dict[int, Part],
    advance: Advance,
    share: Share = ALL,
) -> None:
    """Write a share's missing parts. Raises `ValueError` when the source is not that of `stored`."""
    begun: deque[tuple[int, str, Section]] = deque()

    def sources() -> Iterator[ImageSource]:
        for number, start, section in missing_sections(task, parts, stored, finished):
            if number % share.count == share.index:
                begun.append((number, start, section))
                yield section.source

    errors = sum(len(part.skipped) for part in task.kept(finished).values())
    batches = checked_batches(engine, sources(), task.options, advance, errors)
    for _, group in groupby(batches, key=lambda pair: id(pair[0])):
        number, start, section = begun.popleft()  # batches come in the order of their sources
        rows, decoded, several, notes = 0, list[Skipped](), Several(), dict[str, str]()
        path = parts.part_file(number)
        shown = bool(task.options.thumbnails)
        with feature_file(path, engine.feature_dim, engine.digest, task.options.dtype, notes, shown) as write:
            for source, batch in group:
                indices = batch.indices
                labels = [source.labels[i] for i in indices]
                write([source.ids[i] for i in indices], labels, batch.outputs, batch.thumbnails)
                rows += len(indices)
                decoded += batch.skipped
                several += Several.of(source.ids, batch.several)
            notes |= Part(rows, section.end, list(section.source.skipped), decoded, start, several).notes()


def missing_sections(
    task: Task, parts: PartsFolder, stored: Manifest | None, finished: dict[int, Part]
) -> Iterator[tuple[int, str, Section]]:
    """The number, start and section of each part that is missing or to be redone; begins the manifest.

    Raises `ValueError` when the location has changed since the finished parts were made.
    """
    start = next(number for number in range(len(finished) + 1) if not task.is_done(number, finished))
    after = finished[start - 1].end if start else ""
    ends = [finished[number].end for number in takewhile(finished.__contains__, count(start))]
    for number, section in enumerate(open_sections(task.location, task.part_images, after, ends), start):
        if number == start:
            if stored is not None and stored["stamp"] != section.stamp:
                raise _changed(task, section.source.start)
            if stored is None or stored["complete"]:
                parts.begin(section.stamp)
        if not task.is_done(number, finished):
            if not len(section.source):  # all of its images are gone since
                raise _changed(task)
            yield number, after, section
        elif finished[number].end != section.end:
            raise _changed(task)
        after = section.end


def _changed(task: Task, start: bytes | None = None) -> ValueError:
    """`start`: where relative paths of a list were looked for."""
    name, out = printable(task.location), printable(task.out)
    if start is None:
        return ValueError(f"{name} has changed since {out} was begun; extract to a new folder")
    return ValueError(
        f"{name} has changed since {out} was begun, or its relative paths, now looked for in {printable(start)}, "
        "started in another folder: run the command there, or extract to a new folder"
    )
