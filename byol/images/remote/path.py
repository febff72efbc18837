"""A file or folder behind a URL, with the methods of `pathlib.Path` needed for reading. Torch-free.

Every request goes through `faults.patiently`: it is retried while its failure may be temporary; then the work stops.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import Any, BinaryIO, TypeVar, cast

from PIL import Image

from byol.files.names import is_of_the_system
from byol.files.regular import SourceUnavailable
from byol.images.location import NotAllowed, allowed_protocol, without_query
from byol.images.picture.read import read_image
from byol.images.remote.faults import AGAIN, WHOLE_ONLY, Fault, Refusal, patiently
from byol.limits import limit
from byol.text import install, printable, reason_of

T = TypeVar("T")

WEB = ("http", "https")
BLOCK = 5 << 20  # bytes of a file that one request asks for, where less is needed
OF_A_LIST = f"{AGAIN}, or take it out of the list"


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of a server, with methods of `pathlib.Path`.

    They raise `Refusal`, an `OSError`, when the server refuses this file, and `SourceUnavailable` when it cannot be
    reached; `advice` tells what to do then.
    """

    url: str
    fs: Any = field(compare=False, repr=False)
    path: str = field(compare=False)
    advice: str = field(default=AGAIN, compare=False, repr=False)

    def __str__(self) -> str:
        return self.url

    @property
    def is_web(self) -> bool:
        """Whether it is one of a web server, whose paths are URLs, with a query where they have one."""
        return self.url.startswith(("http://", "https://"))

    @property
    def name(self) -> str:
        """The last part, without a URL's query."""
        plain = without_query(self.path) if self.is_web else self.path
        return plain.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return os.path.splitext(self.name)[1]

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What the server said of it when it was first asked."""
        return dict(self._asked(lambda: self.fs.info(self.path)))

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        try:
            return bool(self.facts)
        except Refusal as refusal:
            if refusal.fault is Fault.ITS_OWN:
                return False
            raise

    def is_dir(self) -> bool:
        """Whether it is a folder; of web pages, whether it links to anything below itself."""
        if self.is_web:
            return bool(self._asked(lambda: self.fs.isdir(self.path)))
        return self.exists() and self.facts["type"] == "directory"

    def stat(self) -> Any:
        """Its size in bytes and, where the server tells it, its time of modification."""
        time = next((v for v in self.facts.values() if isinstance(v, datetime)), None) or self.facts.get("mtime")
        seconds = time.timestamp() if isinstance(time, datetime) else float(time or 0)
        return SimpleNamespace(st_size=self.facts["size"], st_mtime_ns=int(seconds * 1e9))

    def open(self, mode: str = "rb") -> BinaryIO:
        """A reader of its bytes, at any place."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: remote files are read only")
        return self.open_parts() if self._in_parts else io.BytesIO(self.read_bytes())

    @property
    def _in_parts(self) -> bool:
        return self.facts["size"] is not None and bool(self.facts.get("partial", True))

    def open_parts(self) -> BinaryIO:
        """The same, without ever fetching the whole file; reading raises as `read_range`.

        Raises `SourceUnavailable` where the server does not send parts.
        """
        if not self._in_parts:
            raise SourceUnavailable(f"{printable(self.url)} cannot be read now: {WHOLE_ONLY}")
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(self), BLOCK))

    def read_bytes(self, most: int | None = None) -> bytes:
        """All of it, by one request. Raises `Refusal` also beyond `most` bytes, else beyond what a picture may have."""
        most = limit("BYOL_MAX_PICTURE_MB") << 20 if most is None else most
        content = self._asked(lambda: self._fetch(0, most + 1))
        if len(content) > most:
            raise Refusal(f"it is larger than {most >> 20:,} MB (BYOL_MAX_PICTURE_MB)")
        return content

    def read_range(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer where the file ends.

        Raises `SourceUnavailable` for whatever fails, and when the file has changed.
        """
        known = self.facts["size"]
        end = offset + size if known is None else min(offset + size, known)
        if end <= offset:
            return b""
        versions = {"version": self.facts["version"]} if getattr(self.fs, "knows_versions", False) else {}
        try:
            content = self._asked(lambda: self._fetch(offset, end, **versions))
        except Refusal as refusal:  # it was there a moment ago: no image in it is at fault
            text = f"{printable(self.url)} is no longer readable: {refusal.reason}; {self.advice}"
            raise SourceUnavailable(text) from refusal
        if len(content) != end - offset:
            raise SourceUnavailable(f"{printable(self.url)} changed while it was read; {self.advice}")
        return content

    def files_below(self, suffixes: Container[str]) -> list[RemotePath]:
        """The files below this folder, at every depth, that end in a suffix, in any case, sorted; no hidden ones.

        Nor those in folders of the system's own.
        """
        start = len(without_query(self.path).rstrip("/"))
        found = self._asked(lambda: self.fs.find(self.path))
        visible = (path for path in found if "/." not in path[start:])
        files = (self._beside(path) for path in visible if not any(map(is_of_the_system, path[start:].split("/"))))
        return sorted((file for file in files if file.suffix.lower() in suffixes), key=str)

    def matching(self) -> list[RemotePath]:
        """The files that this path, a pattern with `*`, `?` or `[...]`, stands for."""
        if not set(self.path) & set("*[" if self.is_web else "*?["):
            return [self] if self.exists() else []
        try:
            return [self._beside(path) for path in self._asked(lambda: self.fs.glob(self.path))]
        except Refusal as refusal:
            if refusal.fault is Fault.ITS_OWN:
                return []
            raise

    def picture(self, least_side: int = 0) -> Image.Image:
        """Fetch and decode an image, as `read_image`. Raises `UnreadableImage`, and as `read_bytes` does."""
        return read_image(io.BytesIO(self.read_bytes()), least_side=least_side)

    def _beside(self, path: str) -> RemotePath:
        return RemotePath(self.fs.unstrip_protocol(path), self.fs, path, self.advice)

    def _asked(self, call: Callable[[], T]) -> T:
        return patiently(self.url, call, self.advice)

    def _fetch(self, start: int, end: int, **options: Any) -> bytes:
        """Bytes by one request that ends in time, however little comes of it at once."""
        if not getattr(self.fs, "async_impl", False):
            return bytes(self.fs.cat_file(self.path, start=start, end=end))
        from fsspec.asyn import sync

        call = functools.partial(self.fs._cat_file, self.path, start=start, end=end, **options)
        return bytes(sync(self.fs.loop, call, timeout=limit("BYOL_FETCH_SECONDS")))


class _RemoteFile(io.RawIOBase):
    """A remote file as a stream."""

    def __init__(self, path: RemotePath):
        self._path, self._place = path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._path.facts["size"]}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        content = self._path.read_range(self._place, len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


# ------------------------------------------------------------------------------------------------ opening


def remote_path(url: str, in_list: bool = False) -> RemotePath:
    """A URL as an object with methods of `Path`; `in_list`: a stranger wrote it.

    Raises `NotAllowed` for a URL that is not read, `ValueError` when a package is missing, and `SourceUnavailable`.
    """
    protocol = allowed_protocol(url, in_list)
    try:
        kind, options = _files_of(protocol, in_list)
    except ImportError as error:
        advice = str(error) if "nstall" in str(error) else install("remote")  # fsspec names the package
        raise ValueError(f"{printable(url)} needs a package that is not installed: {advice}") from error
    except ValueError as error:
        raise ValueError(f"{printable(url)} cannot be used: {reason_of(error)}") from error
    url = protocol + url[len(protocol) :]
    try:
        path, named = kind._strip_protocol(url), kind._get_kwargs_from_urls(url)
    except Exception as error:
        raise NotAllowed(f"it is not a {protocol} URL: {reason_of(error)}") from error
    if in_list and "/" not in path.strip("/"):
        raise NotAllowed("it names no file")
    advice = OF_A_LIST if in_list else AGAIN
    # Listings are not kept: they would hold every name, and an old one hides what has changed.
    files = patiently(url, lambda: kind(use_listings_cache=False, **named, **options), advice)
    return RemotePath(url, _walking_aloud(files), path, advice)


def _walking_aloud(files: Any) -> Any:
    """The same file system, whose `find` and `glob` raise where a folder cannot be listed; fsspec has it empty."""
    walk = "_walk" if getattr(files, "async_impl", False) else "walk"
    if walk not in vars(files):  # fsspec gives the same object for the same server
        setattr(files, walk, functools.partial(getattr(files, walk), on_error=_raise_unless_gone))
    return files


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _files_of(protocol: str, in_list: bool) -> tuple[Any, dict[str, Any]]:
    """The class of a protocol's file systems, and options for it. fsspec's own way from a URL would follow chains."""
    import fsspec

    if protocol not in WEB:
        return fsspec.get_filesystem_class(protocol), {}
    from byol.images.remote.http import HttpFiles

    seconds = {"silence": limit("BYOL_URL_SECONDS"), "seconds": limit("BYOL_FETCH_SECONDS")}
    return HttpFiles, {**seconds, "public_only": in_list and _public_only()}


def _public_only() -> bool:
    chosen = os.environ.get("BYOL_LIST_ADDRESSES", "").strip() or "any"
    if chosen not in ("any", "public"):
        raise ValueError(f"BYOL_LIST_ADDRESSES is {chosen!r:.40}; expected any or public")
    return chosen == "public"
