"""Images behind URLs (`s3://bucket/images`), through fsspec and the package of their protocol. Torch-free.

Shards, `.npz` files and lists are read through `RemotePath` by the same code as local ones; a folder of images is
walked here. Credentials, endpoints and other settings of a protocol come from its own environment variables or fsspec's
configuration files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from PIL import Image

from byol.files.names import is_of_the_system
from byol.files.regular import SourceUnavailable
from byol.images.columns import Names
from byol.images.location import without_query
from byol.images.remote.faults import AGAIN, Fault, Refusal, patiently, words_for
from byol.images.remote.path import RemotePath
from byol.images.stamps import LOOKED_INTO, spread
from byol.images.surroundings import UnreadableImage
from byol.images.walk import NOT_YOURS, OWN, Skip, judge_image, merged
from byol.run import CONFIG, MOST_CONFIG, OWN_VIEWS, is_run
from byol.text import printable

T = TypeVar("T")

DEEPEST = 256  # folders; a server may list itself without end


def asked(url: str, call: Callable[[], T]) -> T:
    """What `call` gives. Raises `ValueError` naming the URL for whatever it raises: each protocol has its own."""
    try:
        return call()
    except (SourceUnavailable, UnreadableImage):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and printable(url) in str(error):
            raise
        raise ValueError(f"{printable(url)} cannot be used: {words_for(error)}") from error


class RemoteTree:
    """A folder behind a URL, as `byol.images.folder.Tree`. Its listing is read one sub-folder at a time."""

    def __init__(self, root: RemotePath) -> None:
        self.name, self._root = printable(root.url), root
        self._start = without_query(root.path).rstrip("/") if root.is_web else root.path.rstrip("/")
        self._query = root.path[len(without_query(root.path)) :] if root.is_web else ""  # a signature is for all below

    def walk(self, skip: Skip) -> Iterator[bytes]:
        """Yield the images below as relative paths, sorted by their bytes. Hidden files and folders do not count.

        Raises `SourceUnavailable` when a folder cannot be listed.
        """
        return self._walk(b"", skip)

    def _walk(self, folder: bytes, skip: Skip) -> Iterator[bytes]:
        try:
            place = self._place(folder) if folder else self._root.path
            entries = patiently(self._url(folder), lambda: self._root.fs.ls(place, detail=True))
        except Refusal as refusal:
            self._require_reachable(refusal)
            if not folder or refusal.fault is not Fault.ITS_OWN:
                raise SourceUnavailable(
                    f"{printable(self._url(folder))} cannot be listed: {refusal}; {AGAIN}"
                ) from refusal
            skip(folder, refusal.reason)  # gone since its parent was listed
            return
        verdicts, folders = self._sorted_out(folder, entries)
        if verdicts.get(OWN) == "" and self._is_run(folder, entries):
            verdicts[OWN] = OWN_VIEWS
        prefix = folder + b"/" if folder else b""
        for name in merged(sorted(verdicts), folders):
            if name in verdicts and not verdicts[name]:
                yield prefix + name
            elif name in verdicts:
                skip(prefix + name, verdicts[name])
            elif prefix.count(b"/") < DEEPEST:
                yield from self._walk(prefix + name[:-1], skip)
            else:
                skip(prefix + name[:-1], f"it is more than {DEEPEST} folders deep")

    def _sorted_out(self, folder: bytes, entries: list[dict[str, Any]]) -> tuple[dict[bytes, str], list[bytes]]:
        """The images in a listing, each with why it is left out, if it is, and the names of the folders."""
        verdicts, folders = dict[bytes, str](), list[bytes]()
        for entry in entries:
            name = os.fsencode(entry["name"].rstrip("/").rpartition("/")[2])
            if entry["name"].rstrip("/") == self._below(folder) or name.startswith(b"."):  # itself, or hidden
                continue
            if entry["type"] == "directory":
                if is_of_the_system(os.fsdecode(name)):
                    verdicts[name] = NOT_YOURS
                else:
                    folders.append(name)
            elif (verdict := judge_image(name)) is not None:
                verdicts[name] = verdict
        return verdicts, folders

    def _is_run(self, folder: bytes, entries: list[dict[str, Any]]) -> bool:
        """Whether a byol run was copied to this folder."""
        path = os.path.join(folder, os.fsencode(CONFIG))
        if self._below(path) not in {entry["name"].rstrip("/") for entry in entries}:
            return False
        try:
            return is_run(self._at(path).read_bytes(MOST_CONFIG))
        except Refusal:
            return False

    def open(self, path: bytes, least_side: int = 0) -> Image.Image:
        """Fetch and decode an image. Raises `UnreadableImage`; `SourceUnavailable` when the folder is gone, too."""
        try:
            return self._at(path).picture(least_side)
        except Refusal as refusal:
            self._require_reachable(refusal)
            raise UnreadableImage(refusal.reason) from refusal

    def path(self, path: bytes) -> bytes:
        """The URL of an image, as it is opened: with a signature where the folder's has one."""
        return os.fsencode(self._url(path))

    def files(self, names: Names) -> _RemoteFiles:
        """Some of its images, to tell whether they change."""
        return _RemoteFiles(
            self._root, [self._at(names.raw[i].as_py()) for i in spread(len(names), LOOKED_INTO).tolist()]
        )

    def _require_reachable(self, error: Refusal) -> None:
        try:
            patiently(self._root.url, lambda: self._root.fs.info(self._root.path))
        except Refusal as lost:
            raise SourceUnavailable(f"{self.name} cannot be reached any longer ({error.reason}); {AGAIN}") from lost

    def _at(self, path: bytes) -> RemotePath:
        return RemotePath(self._url(path), self._root.fs, self._place(path))

    def _below(self, path: bytes) -> str:
        return f"{self._start}/{os.fsdecode(path)}".rstrip("/")

    def _place(self, path: bytes) -> str:
        return self._below(path) + self._query

    def _url(self, path: bytes) -> str:
        return self._place(path) if self._root.is_web else str(self._root.fs.unstrip_protocol(self._place(path)))


class _RemoteFiles:
    """Images below a URL; `some` of them are asked for one by one."""

    def __init__(self, root: RemotePath, some: Sequence[RemotePath]) -> None:
        self._root, self._some = root, some

    def stamp(self) -> str:
        """What the server says of every file: size, time, and where it has one, a digest of the content.

        Pages of web servers say nothing of their files: there it is what some files say of themselves.
        """
        digest = hashlib.sha256()
        for line in self._said_by_some() if self._root.is_web else self._said_of_all():
            digest.update(f"{line}\n".encode())
        return digest.hexdigest()

    def _said_by_some(self) -> Iterator[str]:
        return (str(facts_of(file)) for file in self._some)

    def _said_of_all(self) -> Iterator[str]:
        try:
            found = patiently(self._root.url, lambda: self._root.fs.find(self._root.path, detail=True))
        except Refusal as refusal:
            raise SourceUnavailable(f"{printable(self._root.url)} cannot be listed: {refusal}; {AGAIN}") from refusal
        for path, facts in sorted(found.items()):
            yield f"{path} {sorted((key, str(value)) for key, value in facts.items())}"

    def content(self) -> str:
        """The sizes of some files."""
        return hashlib.sha256(" ".join(str(facts_of(file)[0]) for file in self._some).encode()).hexdigest()


def facts_of(file: RemotePath) -> tuple[object, ...]:
    """The size of a file behind a URL and, where the server tells them, its time and tag; empty sizes for none."""
    try:
        status = file.stat()
    except Refusal:
        return (None,)
    tag = file.facts.get("ETag") or file.facts.get("version")  # as web servers are asked for it
    return status.st_size, status.st_mtime_ns, str(tag)
