"""A list of images, one path or URL a line: `list.txt`, or the standard input. Torch-free."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from byol.images.columns import Computed, Labels, Names
from byol.images.location import NotAllowed
from byol.images.picture.read import read_image
from byol.images.remote.faults import Refusal
from byol.images.remote.path import RemotePath, remote_path
from byol.images.remote.tree import facts_of
from byol.images.shards.listing import AnyPath
from byol.images.source import ImageSource
from byol.images.stamps import LOOKED_INTO, ListedFiles, spread
from byol.images.surroundings import Anchors, UnreadableImage
from byol.text import path_text, reason_of, url_without_secrets


def list_source(name: str, content: bytes, start: bytes | None) -> ImageSource:
    """The images that a list names. Relative paths start in `start`, by default the current folder."""
    if b"\0" in content:
        raise ValueError(f"{name} is not UTF-8 text: it holds zero bytes; save it as UTF-8, one path or URL a line")
    lines = map(_unquoted, content.removeprefix(codecs.BOM_UTF8).split(b"\n"))
    listed = [line for line in lines if line]
    if not listed:
        raise ValueError(f"{name} is an empty list; write one path or URL a line")
    # The stamp covers the folder in which relative paths start: elsewhere they may name other images.
    here = b"" if all(os.path.isabs(line) or b"://" in line for line in listed) else start or os.getcwdb()
    names, anchors = Names(pa.array(listed, pa.large_binary())), _common_folder(listed, here)
    is_url_line = pc.match_substring(names.raw, b"://")
    urls, local = names.raw.filter(is_url_line), _files(names.raw.filter(pc.invert(is_url_line)), here, anchors)

    def remote() -> Iterator[RemotePath]:
        lines = (urls[i].as_py() for i in spread(len(urls), LOOKED_INTO).tolist())
        return filter(None, map(_listed_url, lines))

    def digest(*more: str, start: bytes = here) -> str:
        return hashlib.sha256(b"\n".join([content + start, *map(str.encode, more)])).hexdigest()

    return ImageSource(
        name=name,
        ids=Computed(len(names), lambda i: url_without_secrets(names[i])),
        labels=Labels.none(len(names)),
        skipped=[],
        open=lambda i, least_side=0: _read_listed(names.raw[i].as_py(), here, anchors, least_side),
        stamp=lambda: digest(local.stamp(), *(str(facts_of(url)) for url in remote())),
        content=lambda: digest(local.content(), *(str(facts_of(url)[0]) for url in remote()), start=b""),
        listing=digest,
        line=lambda i: line_of(names.raw[i].as_py()),
        start=here or None,
    )


def _files(lines: Any, here: bytes, anchors: Anchors) -> ListedFiles:
    return ListedFiles(Names(lines), lambda line: os.path.join(here, line), anchors)


def _listed_url(line: bytes) -> RemotePath | None:
    """A line as a URL; None for one that may not be read."""
    try:
        return remote_path(line.decode(), in_list=True)
    except (NotAllowed, UnicodeDecodeError, Refusal):
        return None


def _unquoted(line: bytes) -> bytes:
    """A line without surrounding blanks and quotes, which other programs write around paths."""
    line = line.strip()
    return line[1:-1] if len(line) > 2 and line[:1] == line[-1:] and line[:1] in (b'"', b"'") else line


def line_of(path: bytes) -> bytes | None:
    """The line by which a list names a local path or a URL.

    None where no line can: the name has a line end in it, or is a URL with secrets, which are written to no file.
    """
    if b"\n" in path or (b"://" in path and url_without_secrets(path_text(path)) != path_text(path)):
        return None
    return path if _unquoted(path) == path and not path.startswith(codecs.BOM_UTF8) else b'"' + path + b'"'


def read_file(path: AnyPath, anchors: Anchors, least_side: int = 0) -> Image.Image:
    """One image, local or remote; `least_side` as in `read_image`. Raises `UnreadableImage`."""
    if not isinstance(path, RemotePath):
        return read_image(path, anchors, least_side)
    try:
        return path.picture(least_side)
    except Refusal as refusal:
        raise UnreadableImage(refusal.reason) from refusal


def _common_folder(listed: Sequence[bytes], here: bytes) -> Anchors:
    """The deepest folder that holds all local files of a list, as it is now: it tells a lost disk from lost files."""
    local = [os.path.join(here, line) for line in listed if b"://" not in line]
    if not local:
        return Anchors()
    first, last = min(local), max(local)  # what these two share, all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    anchors = Anchors()
    anchors.expect(first[:same].rpartition(b"/")[0].rstrip(b"/") or b"/")
    return anchors


def _read_listed(line: bytes, here: bytes, anchors: Anchors, least_side: int) -> Image.Image:
    if b"://" not in line:
        path = os.path.join(here, line)
        image = read_image(path, anchors, least_side)
        anchors.note_parents(path)
        return image
    try:
        remote = remote_path(line.decode(), in_list=True)
    except (NotAllowed, UnicodeDecodeError, Refusal) as error:
        raise UnreadableImage(reason_of(error)) from error
    return read_file(remote, anchors, least_side)
