"""Locations of images: a path, a URL, a pattern or a data set's name. Light to import."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from byol.limits import limit
from byol.text import printable, url_without_secrets

Location = str | Path  # `str` for URLs, whose slashes `Path` would fold

SETTING = "BYOL_PROTOCOLS"
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
# Lists come from strangers. These protocols read this machine, or wrap another one (and some of them run what a file
# says), so a list never gets them, whatever the setting names.
NEVER_IN_LISTS = {
    *("file", "local", "asynclocal", "memory", "data", "git", "dask", "dvc", "arrow_hdfs", "jupyter", "jlab"),
    *("pyscript", "reference", "simplecache", "filecache", "blockcache", "cached", "dir", "generic"),
    *("async_wrapper", "asyncwrapper", "tar", "zip", "libarchive"),
}
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://")
_BRACKETS = re.compile(r"(?<=://)([^/?#@]*@)?\[[0-9A-Fa-f:.]*\]")  # an IPv6 address: its `::` chains nothing
_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")


class NotAllowed(ValueError):
    """A URL that byol refuses to read. The message does not contain the URL."""


def is_url(location: object) -> bool:
    """Whether a location is a URL, `protocol://...`, and not a local path."""
    return "://" in str(location)


def location_of(text: str) -> Location:
    """What a user wrote: a URL as text, anything else as a path."""
    return text if is_url(text) else Path(text)


def allowed_protocol(url: str, in_list: bool = False) -> str:
    """The protocol of a URL in lower case. Raises `NotAllowed` when it may not be read."""
    found = _PROTOCOL.match(url)
    if "::" in _BRACKETS.sub("", url):
        raise NotAllowed("chains of protocols (`::`) are not allowed")
    if found is None:
        raise NotAllowed("it does not begin with a protocol such as s3://")
    protocol = found[1].lower()
    if in_list and protocol in NEVER_IN_LISTS:
        raise NotAllowed(f"the protocol {protocol} is never read from a list")
    allowed = (*PROTOCOLS, *_further_protocols())
    if protocol not in allowed:
        raise NotAllowed(f"the protocol {protocol} is not allowed ({', '.join(allowed)} are; {SETTING} adds others)")
    return protocol


def _further_protocols() -> list[str]:
    return [name.strip().lower() for name in os.environ.get(SETTING, "").split(",") if name.strip()]


def local_path(location: Location) -> str:
    """The path of a location on this machine; other URLs as they are."""
    return str(location).removeprefix("file://")


def same_place(one: Location, other: Location) -> bool:
    """Whether two locations are one file or folder, by whatever names, or one URL."""
    if str(one) == str(other):
        return True
    try:
        return os.path.samefile(local_path(one), local_path(other))
    except (OSError, ValueError):
        return False


def without_query(url: str) -> str:
    """A URL, or a part of one, up to its query and fragment."""
    return re.split("[?#]", url, maxsplit=1)[0]


def last_part(location: Location) -> str:
    """The last part of a location, safe to store: no parent folders, no secrets of a URL."""
    if is_url(location):
        return url_without_secrets(str(location)).rstrip("/").rpartition("/")[2]
    return Path(location).resolve().name


def names_below(files: Sequence[object], root: object = None) -> list[str]:
    """Files, local or remote, as paths below `root` with `/`, else below their common folder.

    URLs lose their secrets.
    """
    names = [url_without_secrets(str(file)) for file in files]
    shared = (os.path.dirname(name) for name in names)
    start = os.path.commonpath(list(shared)) if root is None else url_without_secrets(str(root))
    return [os.path.relpath(name, start).replace(os.sep, "/") for name in names]


def written_out(pattern: str) -> Iterator[str]:
    """The patterns that ranges `{first..last}` stand for, zero-padded like `first`.

    Raises `ValueError` when there are more than `BYOL_MAX_PATTERNS`.
    """
    count, most = 1, limit("BYOL_MAX_PATTERNS")
    for first, last in _RANGE.findall(pattern):
        wide = max(len(first), len(last)) > 18  # more than any limit; such numbers are slow to read
        count = most + 1 if wide else count * max(0, int(last) - int(first) + 1)
        if count > most:
            raise ValueError(
                f"{printable(pattern):.200} stands for more than {most:,} files; BYOL_MAX_PATTERNS allows more"
            )
    return _written_out(pattern)


def _written_out(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _written_out(f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}")
