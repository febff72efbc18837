"""Zip files from strangers (`.npz`, torch's checkpoints): their content is measured before it is read.

Only what NumPy and torch write is accepted: the directory at the very end, entries stored or deflated, no duplicates,
no overlaps. So every reader sees the same entries, with the sizes that the directory states. Torch-free.
"""

from __future__ import annotations

import os
import struct
import zipfile
from typing import Any, BinaryIO

from byol.limits import limit, most_unpacked

_END = struct.Struct("<4s4H2LH")  # signature, 2 numbers of disks, 2 of entries, directory's size and place, comment
_END64 = struct.Struct("<4sQ2H2L4Q")  # signature, size, versions, disks, entries, directory's size and place
_LOCATOR64 = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")  # signature, ..., lengths of the name and of more
_ENCRYPTED = 0x2041  # flags


def open_zip(stream: BinaryIO) -> zipfile.ZipFile:
    """The zip file in an open stream, its directory checked.

    Raises `ValueError` for one that is damaged, has overlapping or duplicate entries, a directory beyond
    `BYOL_MAX_HEADER_MB`, or more in it than `BYOL_MAX_RATIO` allows.
    """
    size = stream.seek(0, os.SEEK_END)
    directory = _directory_place(stream, size)
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"not a readable zip file: {error}") from error
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    ends = [*(entry.header_offset for entry in entries[1:]), directory]
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("two of its entries have the same name")
    for entry, end in zip(entries, ends, strict=True):
        _require_sound(stream, entry, end)
    total = sum(entry.file_size for entry in entries)
    if total > most_unpacked(size):
        raise ValueError(f"its {size:,} bytes unpack to {total:,}; if you trust the file, set BYOL_MAX_RATIO")
    return archive


def _directory_place(stream: BinaryIO, size: int) -> int:
    """Where the directory begins: it ends where the closing records begin, or another reader may find another one."""
    place = size - _END.size
    start: int
    signature, *_, length, start, comment = _record(stream, _END, place)
    if signature != b"PK\5\6" or comment:
        raise ValueError("not a zip file, or cut off")
    if _record(stream, _LOCATOR64, place - _LOCATOR64.size)[0] == b"PK\6\7":
        place -= _LOCATOR64.size + _END64.size
        signature, *_, length, start = _record(stream, _END64, place)
        if signature != b"PK\6\6":
            raise ValueError("a zip file without a directory")
    if start + length != place:
        raise ValueError("a zip file whose directory is not at its end")
    most = limit("BYOL_MAX_HEADER_MB")
    if length > most << 20:
        raise ValueError(f"its directory has {length:,} bytes, BYOL_MAX_HEADER_MB is {most}")
    return start


def _record(stream: BinaryIO, kind: struct.Struct, place: int) -> tuple[Any, ...]:
    """A record at a place, all zeros where the file has none."""
    stream.seek(max(0, place))
    found = stream.read(kind.size)
    return kind.unpack(found if place >= 0 and len(found) == kind.size else bytes(kind.size))


def _require_sound(stream: BinaryIO, entry: zipfile.ZipInfo, end: int) -> None:
    name = entry.filename
    if entry.flag_bits & _ENCRYPTED or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its entry {name:.80} is encrypted, or compressed by an unsupported method")
    signature, *_, name_length, more_length = _record(stream, _LOCAL, entry.header_offset)
    content = entry.header_offset + _LOCAL.size + name_length + more_length
    if signature != b"PK\3\4" or content + entry.compress_size > end:
        raise ValueError(f"its entry {name:.80} is not where the directory says, or overlaps another")
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        raise ValueError(f"its entry {name:.80} is stored with two different sizes")
