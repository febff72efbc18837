"""The members of a tar file, by one pass over its headers: in a loop that each header moves on. Torch-free.

Python's `tarfile` parses a header, but goes from one to the next by what the headers claim: backwards for a negative
size, by recursion through long names, and no further than the end of the first of two archives joined by `cat`.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
MOST_SAID = 1 << 20  # bytes of a long name, or of a pax header
READ = 1 << 20
MOST_ZEROS = 1 << 26  # bytes between two archives in one file
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_WITHOUT_CONTENT = (*LINKS, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_OF_OTHERS = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


class Damaged(ValueError):
    """A tar file that cannot be read any further."""


@dataclass(frozen=True)
class Member:
    """A member: its path, the place and size of its content, and why it is not a regular file, if so."""

    name: bytes
    offset: int
    size: int
    kind: str = ""


def members(stream: BinaryIO) -> Iterator[Member]:
    """Yield the members, without folders, of all archives joined in a file. Raises `Damaged`, `OSError`."""
    size = stream.seek(0, os.SEEK_END)
    if size == 0:
        raise Damaged("an empty file")
    place = 0
    following: dict[bytes, bytes] = {}  # what headers say of the next member,
    common: dict[bytes, bytes] = {}  # and of all that follow
    while place < size:
        block = _read(stream, place, BLOCK)
        if not block.strip(b"\0"):
            place = _behind_zeros(stream, place, size)
            continue
        header, extended = _header(block, place), {**common, **following}
        content = place + BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE:
            content = _behind_sparse(stream, block, content)
        length = _length(header, extended)
        if not 0 <= length <= size - content:
            raise Damaged(f"the member at byte {place:,} claims {length:,} bytes, the file has {size:,}")
        if header.type in _OF_OTHERS:
            said = _said(stream, header.type, content, length)
            (common if header.type == tarfile.XGLTYPE else following).update(said)
        else:
            following = {}
            if header.type != tarfile.DIRTYPE:
                name = extended.get(b"path") or os.fsencode(header.name)
                yield Member(name, content, length, _kind(header, extended))
        place = content + -(-length // BLOCK) * BLOCK
    if following:
        raise Damaged("the file ends before the member that its last header is for")


def _said(stream: BinaryIO, kind: bytes, place: int, length: int) -> dict[bytes, bytes]:
    """What a header says of other members, as pax names it."""
    if length > MOST_SAID:
        raise Damaged(f"a header of {length:,} bytes for another member; none has more than {MOST_SAID:,}")
    content = _read(stream, place, length)
    if kind in _PAX:
        return _records(content)
    return {b"path": content.partition(b"\0")[0]} if kind == tarfile.GNUTYPE_LONGNAME else {}


def _read(stream: BinaryIO, place: int, size: int) -> bytes:
    stream.seek(place)
    found = stream.read(size)
    if len(found) < size:
        raise Damaged("the file ends within a header")
    return found


def _header(block: bytes, place: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        packed = [name for magic, name in PACKED.items() if block.startswith(magic) and place == 0]
        raise Damaged(
            f"compressed by {packed[0]}; unpack it" if packed else f"no tar header at byte {place:,}"
        ) from error


def _length(header: tarfile.TarInfo, extended: dict[bytes, bytes]) -> int:
    """The bytes of content behind a header; only a regular file's are what pax says."""
    if header.type in _WITHOUT_CONTENT:
        return 0
    said = extended.get(b"size")
    if said is None or header.type not in REGULAR:
        return header.size
    if not said.isdigit() or len(said) > 20:
        raise Damaged(f"a pax header claims a size of {said[:40]!r}")
    return int(said)


def _records(content: bytes) -> dict[bytes, bytes]:
    """The path, the size and what tells sparse files, of a pax header's records `LENGTH KEY=VALUE` and a line end."""
    found: dict[bytes, bytes] = {}
    place = 0
    while place < len(content) and content[place]:
        length, space, _ = content[place : place + 20].partition(b" ")
        if not space or not length.isdigit() or not len(length) + 2 < int(length) <= len(content) - place:
            raise Damaged("a pax header is damaged")
        key, _, value = content[place + len(length) + 1 : place + int(length) - 1].partition(b"=")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            found[key] = value
        place += int(length)
    return found


def _kind(header: tarfile.TarInfo, extended: dict[bytes, bytes]) -> str:
    """Why a member's content is not that of a file; empty where it is."""
    if header.type in LINKS:
        return "a link; write the file itself (tar --dereference --hard-dereference)"
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse.") for key in extended):
        return "stored as a sparse file; write it whole (tar without --sparse)"
    return "" if header.type in REGULAR else "not a regular file"


def _behind_sparse(stream: BinaryIO, block: bytes, place: int) -> int:
    """Where the content of a sparse member in GNU's old format begins: behind the list of its holes."""
    more = block[482]
    while more:
        more = _read(stream, place, BLOCK)[504]
        place += BLOCK
    return place


def _behind_zeros(stream: BinaryIO, place: int, size: int) -> int:
    """Where the next archive begins, if there is one: behind the zeros that fill the last record of the one before."""
    for start in range(place, min(size, place + MOST_ZEROS), READ):
        found = _read(stream, start, min(READ, size - start))
        rest = found.lstrip(b"\0")
        if rest:
            return (start + len(found) - len(rest)) // BLOCK * BLOCK
    if size - place > MOST_ZEROS:
        raise Damaged(f"more than {MOST_ZEROS >> 20} MB of zeros at byte {place:,}; the rest is not read")
    return size
