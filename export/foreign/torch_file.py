"""What `torch.save` wrote, measured before torch reads it: a zip file since torch 1.6, pickles and storages before."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

from byol.export.foreign.pickles import require_state_dict
from byol.files.zips import open_zip
from byol.limits import limit, most_unpacked

# The first pickle of a file before torch 1.6: a number that says so. Another one may be a tar file, or anything.
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class Program(ValueError):
    """A TorchScript program."""


def require_checkpoint(stream: BinaryIO) -> None:
    """Raise `ValueError` when a file is not what torch saves, or would take more memory than its size allows.

    `MoreThanTensors` when it holds more than a state dict, `Program` when it is one.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start = stream.read(len(LEGACY))
    if start == LEGACY:
        _require_legacy(stream, size)
    elif start.startswith(b"PK"):
        _require_zip(stream, size)
    else:
        raise ValueError("it does not begin like a torch.save file")


def _require_zip(stream: BinaryIO, size: int) -> None:
    with open_zip(stream) as archive:
        sizes = {entry.filename.partition("/")[2]: entry.file_size for entry in archive.infolist()}
        if len(sizes) < len(archive.namelist()) or "data.pkl" not in sizes:
            raise ValueError("it does not hold one data.pkl")
        if "constants.pkl" in sizes:
            raise Program
        _require_header(sizes["data.pkl"])
        [name] = [name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"]
        content = io.BytesIO(archive.read(name))

    def claim(key: str, count: int) -> None:
        if count > sizes.get(f"data/{key}", -1):
            raise ValueError(f"it does not hold the {count:,} bytes of storage {key:.40}")

    require_state_dict(content, claim, most_unpacked(size))


def _require_legacy(stream: BinaryIO, size: int) -> None:
    """Pickles (a number, a version, a system, what was saved, the keys of its storages), then the storages."""
    stream.seek(0)
    content = io.BytesIO(stream.read(limit("BYOL_MAX_HEADER_MB") << 20))
    claimed: dict[str, int] = {}

    def claim(key: str, count: int) -> None:
        claimed[key] = max(count, claimed.get(key, 0))
        if count > size:
            raise ValueError(f"it does not hold the {count:,} bytes of storage {key:.40}")

    for _ in range(5):
        require_state_dict(content, claim, most_unpacked(size))
    if sum(claimed.values()) > size - content.tell():
        raise ValueError(f"it claims {sum(claimed.values()):,} bytes of storages but holds {size:,}")


def _require_header(size: int) -> None:
    most = limit("BYOL_MAX_HEADER_MB")
    if size > most << 20:
        raise ValueError(f"its pickle has {size:,} bytes, BYOL_MAX_HEADER_MB is {most}")
