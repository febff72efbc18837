"""Images behind URLs (`s3://bucket/images`), through fsspec and the package of their protocol. Torch-free.

`universal_pathlib` gives URLs the interface of `pathlib.Path`, so that shards, `.npz` files and lists are read by the
same code as local ones; a folder of images is walked here. Credentials, endpoints and other settings of a protocol come
from its own environment variables or fsspec's configuration files.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from PIL import Image

from byol.columns import Names
from byol.folders import Skip, is_image, merged
from byol.images import UnreadableImage, read_image
from byol.text import reason_of

T = TypeVar("T")


def remote_path(url: str) -> Path:
    """A URL as an object with the methods of `Path`. Raises `ValueError` when a package for it is missing."""
    try:
        from upath import UPath
    except ImportError as error:
        raise ValueError(f"{url} needs fsspec: pip install 'byol[remote]'") from error
    # Listings are not kept: they would hold every name, and an old one hides what has changed.
    path: Any = asked(url, lambda: UPath(url, use_listings_cache=False))
    return cast(Path, path)  # it has its methods


def matching(pattern: str) -> list[Path]:
    """The files of a URL with `*`, `?` or `[...]`. Raises `ValueError` when the place cannot be asked."""
    place: Any = remote_path(pattern)
    found: list[str] = asked(pattern, lambda: place.fs.glob(place.path))
    return [remote_path(place.fs.unstrip_protocol(path)) for path in found]


def read_remote(fs: Any, path: str) -> Image.Image:
    """Fetch and decode one image of a file system. Raises whatever the protocol does, and `UnreadableImage`."""
    return read_image(io.BytesIO(fs.cat_file(path)))


def read_range(file: Any, offset: int, size: int) -> bytes:
    """Some bytes of a file, local or remote; fewer where it ends. A remote one is asked for these only."""
    if hasattr(file, "fs"):
        return bytes(file.fs.cat_file(file.path, start=offset, end=offset + size))
    with file.open("rb") as stream:
        stream.seek(offset)
        return bytes(stream.read(size))


def asked(url: str, call: Callable[[], T]) -> T:
    """What `call` gives. Raises `ValueError` for whatever it raises: each protocol has exceptions of its own."""
    try:
        return call()
    except Exception as error:
        if isinstance(error, ValueError) and url in str(error):
            raise
        raise ValueError(f"{url} cannot be used: {type(error).__name__}: {reason_of(error)}") from error


def guarded(open_image: Callable[[T], Image.Image], root: Any) -> Callable[[T], Image.Image]:
    """The same function, which stops the work when its place is gone: then it is not the image that is bad.

    It raises `UnreadableImage` while `root` can still be asked, and `ValueError` when it cannot.
    """

    def guarded_open(item: T) -> Image.Image:
        try:
            return open_image(item)
        except Exception as error:  # protocols raise kinds of their own
            if not isinstance(error, FileNotFoundError | PermissionError):
                _require_reachable(root, error)
            if isinstance(error, UnreadableImage):
                raise
            raise UnreadableImage(reason_of(error)) from error

    return guarded_open


def _require_reachable(root: Any, error: Exception) -> None:
    try:
        root.fs.info(root.path)
    except Exception as lost:
        reason = reason_of(error)
        raise ValueError(f"{root} cannot be reached any more ({reason}); give the same command again later") from lost


class RemoteTree:
    """A folder behind a URL, as `byol.folders.Tree`. Its listing is held one sub-folder at a time."""

    def __init__(self, root: Any) -> None:
        self.name, self._fs, self._root = str(root), root.fs, str(root.path).rstrip("/")

    def walk(self, skip: Skip) -> Iterator[bytes]:
        """Yield the images below as relative paths, sorted by their bytes. Hidden files and folders do not count."""
        return self._walk(b"", skip)

    def _walk(self, folder: bytes, skip: Skip) -> Iterator[bytes]:
        try:
            entries = self._fs.ls(self._place(folder), detail=True)
        except FileNotFoundError as error:  # gone since its parent was listed
            skip(folder, reason_of(error))
            return
        except Exception as error:
            raise ValueError(f"{self.name} cannot be listed: {reason_of(error)}") from error
        images, folders = [], []
        for entry in entries:
            name = _last_part(entry["name"])
            if entry["name"].rstrip("/") == self._place(folder) or name.startswith(b"."):  # itself, or hidden
                continue
            if entry["type"] == "directory":
                folders.append(name)
            elif is_image(name):
                images.append(name)
        prefix = folder + b"/" if folder else b""
        for name in merged(sorted(images), folders):
            if name.endswith(b"/"):
                yield from self._walk(prefix + name[:-1], skip)
            else:
                yield prefix + name

    def open(self, path: bytes) -> Image.Image:
        """Fetch and decode an image. Raises whatever the protocol does, and `UnreadableImage`."""
        return read_remote(self._fs, self._place(path))

    def stamp(self, names: Names) -> str:
        """What the server says of every file: size, time, and where it has one, a digest of the content."""
        digest = hashlib.sha256()
        for path, facts in sorted(self._fs.find(self._root, detail=True).items()):
            digest.update(f"{path} {sorted((key, str(value)) for key, value in facts.items())}\n".encode())
        return digest.hexdigest()

    def _place(self, path: bytes) -> str:
        return f"{self._root}/{os.fsdecode(path)}".rstrip("/")


def _last_part(path: str) -> bytes:
    return os.fsencode(path.rstrip("/").rpartition("/")[2])
