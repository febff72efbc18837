"""http:// and https://: fsspec's file system with our own requests. Needs the extra `remote`.

Servers are strangers. Nothing is unpacked, bodies are limited in size, silence ends a request, and an error becomes a
`Refusal` in our words: a stranger's list may lead to internal servers, whose words must not leak. Torch-free.
"""

from __future__ import annotations

import contextlib
import html
import ipaddress
import re
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote, urljoin

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from byol.images.location import without_query
from byol.images.remote.faults import (
    NO_BYTES,
    WHOLE_ONLY,
    WRONG_ASKER,
    Fault,
    Refusal,
    fault_of_status,
    phrase,
    seconds_of,
)
from byol.text import reason_of

MOST_PAGE = 64 << 20  # bytes of a page that lists a folder
NOT_PUBLIC = "its address is not public, and BYOL_LIST_ADDRESSES=public allows no other in lists"
_LINK = re.compile(r"""href\s*=\s*(?:"([^"<>]*)"|'([^'<>]*)')""", re.IGNORECASE)
_CODE = re.compile(rb"<Code>([A-Za-z]+)</Code>")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class HttpFiles(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no annotations
    """Files of web servers. A request ends after `silence` seconds of it, and after `seconds` in all.

    `public_only`: no request leaves for an internal address.
    """

    knows_versions = True  # `cat_file` takes `version`, as `info` says it

    def __init__(self, silence: int, seconds: int, public_only: bool = False, **options: Any):
        async def client(**given: Any) -> aiohttp.ClientSession:
            return _client(aiohttp.ClientTimeout(seconds, sock_connect=silence, sock_read=silence), public_only, given)

        super().__init__(get_client=client, **options)

    async def _cat_file(
        self,
        url: str,
        start: int,
        end: int,
        version: str | None = None,
        **_: Any,
    ) -> bytes:
        """With a `version` the bytes from `start` to `end`; else the whole file, of less than `end` bytes."""
        if version is None:
            async with self._answered(url) as answer:
                too_large = f"it is larger than {end - 1 >> 20:,} MB (BYOL_MAX_PICTURE_MB)"
                return await _body(answer, end - 1, Refusal(too_large))
        async with self._answered(url, {"Range": f"bytes={start}-{end - 1}"}) as answer:
            if version != _version(answer):
                raise Refusal("it has changed since it was opened", Fault.FINAL)
            if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise Refusal(WHOLE_ONLY, Fault.FINAL)
            return await _body(answer, end - start, Refusal("its server sends more than requested", Fault.FINAL))

    async def _info(self, url: str, **_: Any) -> dict[str, Any]:
        """Size, type and version, by the request of one byte: not all servers, and not all signatures, allow HEAD."""
        try:
            async with self._answered(url, {"Range": "bytes=0-0"}) as answer:
                facts = {"size": _whole_size(answer), "version": _version(answer), "partial": answer.status == 206}
                return {"name": url, "type": "file", **facts}
        except Refusal as refusal:
            if refusal.reason == NO_BYTES:
                return {"name": url, "type": "file", "size": 0, "version": None, "partial": False}
            raise

    async def _isdir(self, url: str) -> bool:
        try:
            return bool(await self._ls_real(url, detail=False))
        except Refusal as refusal:
            if refusal.fault is Fault.ITS_OWN:
                return False
            raise

    async def _exists(self, url: str, strict: bool = False, **_: Any) -> bool:
        try:
            await self._info(url)
        except Refusal as refusal:
            if refusal.fault is Fault.ITS_OWN:
                return False
            raise
        return True

    async def _walk(self, path: str, maxdepth: int | None = None, on_error: str = "", **options: Any) -> Any:
        """fsspec's, but a folder that cannot be listed is an error and not an empty one. A server may list itself."""
        try:
            async for entry in super()._walk(path, maxdepth, on_error="raise", **options):
                yield entry
        except RecursionError:
            raise Refusal("its folders are nested hundreds deep; name one further down", Fault.FINAL) from None

    async def _ls_real(self, url: str, detail: bool = True, **_: Any) -> list[Any]:
        """What a page links to right below itself."""
        async with self._answered(url) as answer:
            page = await _page(answer)
            listed = without_query(str(answer.url)).rstrip("/") + "/"
        place = without_query(url).rstrip("/") + "/"
        links = (html.unescape(double or single) for double, single in _LINK.findall(page))
        names = sorted(place + name for name in {_name_below(listed, link) for link in links} if name)
        kinds = ("directory" if name.endswith("/") else "file" for name in names)
        return [{"name": n, "size": None, "type": k} for n, k in zip(names, kinds, strict=True)] if detail else names

    @contextlib.asynccontextmanager
    async def _answered(self, url: str, headers: dict[str, str] | None = None) -> AsyncIterator[Any]:
        """A good answer to a GET, its body not yet read."""
        settings = {**self.kwargs, "headers": {**self.kwargs.get("headers", {}), **(headers or {})}}
        session = await self.set_session()
        try:
            async with session.get(self.encode_url(url), **settings) as answer:
                await _require_good(answer)
                yield answer
        except aiohttp.TooManyRedirects:
            raise Refusal("it redirects endlessly") from None
        except (ValueError, aiohttp.RedirectClientError, aiohttp.NonHttpUrlClientError):
            raise Refusal("it redirects to something other than a web URL") from None
        except aiohttp.ClientPayloadError as error:  # what it says, as the next one, quotes the answer
            raise Refusal("its server's answer is cut off or damaged", Fault.PASSING) from error
        except aiohttp.ClientResponseError as error:
            raise Refusal("its server's answer is not HTTP", Fault.PASSING) from error
        except aiohttp.ClientError as error:
            inner = error.__cause__
            raise (inner if isinstance(inner, Refusal) else Refusal(reason_of(error), Fault.PASSING)) from error


def _client(timeout: aiohttp.ClientTimeout, public_only: bool, given: dict[str, Any]) -> aiohttp.ClientSession:
    """A session with what the user's fsspec configuration gives, and the bounds that are ours."""
    ours: dict[str, Any] = {
        "headers": {**given.get("headers", {}), "Accept-Encoding": "identity"},
        "auto_decompress": False,  # a small body may unpack to any size
        "cookie_jar": aiohttp.DummyCookieJar(),  # a list may lead to millions of servers
        "timeout": timeout,
    }
    if public_only:
        ours["connector"] = aiohttp.TCPConnector(socket_factory=_public_socket)
    return aiohttp.ClientSession(**{**given, **ours})


def _public_socket(address: Any) -> socket.socket:
    """A socket to a public address. Every connection comes here: of numbers, of names, and after a redirect."""
    family, kind, protocol, _, place = address
    if not is_public(place[0]):
        raise Refusal(NOT_PUBLIC)
    return socket.socket(family, kind, protocol)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet, also where IPv6 only wraps another one."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


async def _require_good(answer: Any) -> None:
    status = answer.status
    if answer.ok:
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise Refusal("its server sends it compressed (Content-Encoding), which byol does not unpack")
        return
    if status == 416:
        raise Refusal(NO_BYTES)
    fault, after = fault_of_status(status), seconds_of(answer.headers.get("Retry-After", ""))
    if status in (400, 403):  # S3 and Azure say in the body whether a signature is no longer good
        said = await answer.content.read(4096)
        found = _CODE.search(said)
        if found and (found[1].decode() in WRONG_ASKER or b"Request has expired" in said):
            raise Refusal(f"HTTP {status} ({found[1].decode()})", Fault.FINAL)
    if fault is Fault.FINAL and status not in (401, 407):
        fault = Fault.ITS_OWN  # the server understood, and refuses this file
    raise Refusal(phrase(status), fault, after)


async def _body(answer: Any, most: int, too_large: Refusal) -> bytes:
    """A body. Raises `too_large` when it is of more than `most` bytes; aiohttp raises when it ends before it should."""
    if (answer.content_length or 0) > most:
        raise too_large
    body = bytearray()  # no list of pieces: a server may send them byte by byte
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > most:
            raise too_large
    return bytes(body)


async def _page(answer: Any) -> str:
    """A page's text; empty for what is none. Where a server does not say, a page is what is as short as one."""
    said = answer.headers.get("Content-Type")
    if said and said.partition(";")[0].strip().lower() not in ("text/html", "application/xhtml+xml"):
        return ""
    too_large = Refusal(f"its page is larger than {MOST_PAGE >> 20} MB", Fault.FINAL)
    try:
        return (await _body(answer, MOST_PAGE, too_large)).decode("utf-8", "replace")
    except Refusal:
        if said:
            raise
        return ""


def _whole_size(answer: Any) -> int | None:
    """The size of a file that was asked for a byte; None when its server does not say it."""
    if answer.status != 206:
        return answer.content_length  # type: ignore[no-any-return]
    size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(size) if re.fullmatch("[0-9]{1,18}", size) else None


def _version(answer: Any) -> str:
    """What changes when the file does: its tag, its time, its size."""
    return f"{answer.headers.get('ETag', '')} {answer.headers.get('Last-Modified', '')} {_whole_size(answer)}"


def _name_below(folder: str, link: str) -> str:
    """The name that a link of a folder's page has right in that folder, with a slash for a folder; else ""."""
    try:
        target = urljoin(folder, link)
    except ValueError:
        return ""
    plain = target.removesuffix("/")
    start = plain.rfind("/") + 1
    inside = unquote(plain[:start]) == unquote(folder)  # each may escape what the other does not
    return target[start:] if inside and re.fullmatch("[^/?#]+/?", target[start:]) else ""
