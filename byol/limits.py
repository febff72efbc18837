"""What a stranger's input may take of this machine: every limit in one place, each with its environment variable.

docs/security.md lists them; a test keeps the two equal. Torch-free.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """`default` counts `unit`s; `meaning` says of what."""

    default: int
    unit: str
    meaning: str


LIMITS = {
    "BYOL_MAX_PIXELS": Limit(178_956_970, "pixels", "of one picture"),
    "BYOL_DECODE_PIXELS": Limit(1 << 28, "pixels", "that all threads of a process decode at once"),
    "BYOL_MAX_PICTURE_MB": Limit(1024, "MB", "of one encoded picture"),
    "BYOL_MAX_SCANS": Limit(200, "scans", "of one JPEG"),
    "BYOL_MAX_RATIO": Limit(200, "times", "that a compressed file may grow when it is unpacked (64 MB always may)"),
    "BYOL_MAX_HEADER_MB": Limit(16, "MB", "of a Parquet footer, a zip's directory, a pickle, a manifest"),
    "BYOL_MAX_ROW_GROUPS": Limit(10_000, "row groups", "of one Parquet file, and as many columns"),
    "BYOL_GROUPS_MB": Limit(2047, "MB", "of Parquet row groups in memory; one that is larger is refused"),
    "BYOL_URL_SECONDS": Limit(60, "seconds", "that a server may be silent"),
}


ALWAYS = 64 << 20  # bytes that any file may become: a small file of a few colours shrinks a thousandfold


def limit(name: str) -> int:
    """The limit of a name in its unit: the environment's, else the default. Raises `ValueError`."""
    text = os.environ.get(name, "").strip()
    if not text:
        return LIMITS[name].default
    if not text.isascii() or not text.isdigit() or int(text) < 1 or len(text) > 18:
        raise ValueError(f"{name} is {text!r:.40}; expected a whole number of {LIMITS[name].unit}, 1 or more")
    return int(text)


def most_unpacked(packed: int) -> int:
    """The bytes that a file, or a part of one, of `packed` bytes may become in memory."""
    return max(ALWAYS, limit("BYOL_MAX_RATIO") * packed)
