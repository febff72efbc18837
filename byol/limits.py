"""The limits on what a stranger's input may use of this machine, each with its environment variable.

docs/security.md lists them; a test keeps the two equal. Torch-free.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

MAX_BATCH_SIZE = 4096  # images; a typo must not take all memory
LARGEST_SIZE = 8192  # pixels: the side of an encoder's input; one image of it has 200 MB
ALWAYS = 64 << 20  # bytes that any file may unpack to: a small picture of few colours shrinks a thousandfold


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
    "BYOL_GRAPH_MB": Limit(512, "MB", "that a graph's activations may take at once for one image"),
    "BYOL_GRAPH_GIGAPRODUCTS": Limit(20_000, "billion products", "that a graph may compute for one image"),
    "BYOL_GRAPH_NODES": Limit(50_000, "nodes", "of one graph"),
    "BYOL_WEIGHTS_GB": Limit(64, "GB", "of weights in one file of a bundle"),
    "BYOL_METRICS_MB": Limit(256, "MB", "of a run's metrics.jsonl, and of its skipped.jsonl"),
    "BYOL_MAX_HEADER_MB": Limit(
        16, "MB", "of a Parquet footer, a zip's directory, a pickle, the manifest of a features folder"
    ),
    "BYOL_MAX_ROW_GROUPS": Limit(10_000, "row groups", "of one Parquet file, and as many columns"),
    "BYOL_GROUPS_MB": Limit(2047, "MB", "of images of Parquet files in memory; a page that is larger is not read"),
    "BYOL_URL_SECONDS": Limit(60, "seconds", "that a server may be silent"),
    "BYOL_FETCH_SECONDS": Limit(600, "seconds", "that a server may take over one picture, or one piece of a file"),
    "BYOL_MAX_PATTERNS": Limit(1_000_000, "files", "that the ranges of a pattern may stand for"),
    "BYOL_SERVER_REQUEST_MB": Limit(32, "MB", "of one request to `byol serve`"),
    "BYOL_SERVER_IMAGES": Limit(128, "images", "of one request"),
    "BYOL_SERVER_PIXELS": Limit(200_000_000, "pixels", "of all pictures of one request"),
    "BYOL_SERVER_QUEUE": Limit(512, "images", "that wait in all requests; beyond, clients are asked to come later"),
    "BYOL_SERVER_MEMORY_MB": Limit(512, "MB", "of all requests in memory"),
    "BYOL_SERVER_SECONDS": Limit(30, "seconds", "that a client may take to send a request or to take an answer"),
}


class BadLimit(ValueError):
    """An environment variable that is not a valid limit: the user's mistake, not a fault of any file."""


def limit(name: str) -> int:
    """The limit of this name, in its unit: from the environment, else the default. Raises `BadLimit`."""
    text = os.environ.get(name, "").strip()
    if not text:
        return LIMITS[name].default
    if not text.isascii() or not text.isdigit() or int(text) < 1 or len(text) > 18:
        raise BadLimit(f"{name} is {text!r:.40}; expected a whole number of {LIMITS[name].unit}, 1 or more")
    return int(text)


def most_unpacked(packed: int) -> int:
    """The bytes to which a file, or a part of one, of `packed` bytes may unpack in memory."""
    return max(ALWAYS, limit("BYOL_MAX_RATIO") * packed)
