"""A request's body: read whole, within limits of bytes and time, and taken apart. Nothing is unpacked or fetched."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from email.parser import HeaderParser
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from byol.serve.server.bounds import Bounds
from byol.serve.server.measures import Measures
from byol.serve.server.refusals import Refused
from byol.text import printable

T = TypeVar("T")

MOST_HEADERS = 1024  # bytes before the content of a part of a form: Python's parser takes a time that grows squared
_BOUNDARY = re.compile(r';\s*boundary=(?:"([\x20-\x21\x23-\x7e]{1,200})"|([^\s;"]{1,200}))', re.ASCII | re.IGNORECASE)
# JSON takes up to 20 times its size while it is parsed. One body at a time, so that many do not add up.
_PARSER = ThreadPoolExecutor(1, thread_name_prefix="parse")
_SMALL = 1 << 14  # bytes: parsing fewer takes no longer than asking a thread


@asynccontextmanager
async def body_of(request: Request, bounds: Bounds, measures: Measures) -> AsyncIterator[Body]:
    """The body of a request, counted as held until the block ends.

    Raises `Refused`: 408 too slow, 413 too large, 415 compressed, 429 no memory or no room in the queue.
    """
    body = Body(bounds)
    try:
        with measures.stage("read"):
            await _read(request, body)
        yield body
    finally:
        body.free()


class Body:
    """The bytes of one body, and their part in all that the server holds: counted until they are freed.

    Whoever takes them apart takes them over, so that no more than the pictures in them wait in the queue.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds, self.size, self._content = bounds, 0, bytearray()

    def add(self, chunk: bytes) -> None:
        """Take a piece in. Raises `Refused` where the server holds too much."""
        self.bounds.hold(len(chunk))
        self.size += len(chunk)
        self._content += chunk

    def take(self) -> bytes:
        """The bytes, once."""
        content, self._content = bytes(self._content), bytearray()
        return content

    def free(self) -> None:
        """Count it no longer."""
        self.bounds.held -= self.size
        self.size, self._content = 0, bytearray()


async def _read(request: Request, body: Body) -> None:
    bounds = body.bounds
    try:
        async with asyncio.timeout(bounds.seconds):
            try:
                _require_acceptable(request, bounds)
                async for chunk in request.stream():
                    if body.size + len(chunk) > bounds.request_bytes:
                        raise _too_large(bounds)
                    body.add(chunk)
            except Refused:
                body.free()
                await discard(request, bounds.request_bytes)  # who still sends does not listen
                raise
    except TimeoutError as error:
        raise Refused(408, f"the request did not arrive within {bounds.seconds} seconds") from error


def _require_acceptable(request: Request, bounds: Bounds) -> None:
    """Raise what can be told before the body is read."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Refused(415, "compressed requests are not read; send it without Content-Encoding")
    length = request.headers.get("content-length", "0")
    if len(length) > 18 or int(length) > bounds.request_bytes:
        raise _too_large(bounds)
    bounds.require_room()


def _too_large(bounds: Bounds) -> Refused:
    return Refused(413, f"the request has more than {bounds.request_bytes >> 20} MB, the most that is read")


async def discard(request: Request, most: int) -> None:
    """Read on without keeping anything, so that an answer reaches a client that is still sending."""
    async for chunk in _rest(request):
        most -= len(chunk)
        if most < 0:
            return


async def _rest(request: Request) -> AsyncIterator[bytes]:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is given up when the client goes away. The body must have been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def parsed(body: Body, parse: Callable[[bytes], T], measures: Measures) -> T:
    """`parse(content)` of the body, apart from the event loop unless it is short."""
    with measures.stage("parse"):
        if body.size <= _SMALL:
            return parse(body.take())
        return await asyncio.get_running_loop().run_in_executor(_PARSER, parse, body.take())


def json_object(body: bytes) -> dict[str, Any]:
    """A body that must be a JSON object. Raises `Refused`."""
    try:
        found = json.loads(body)
    except RecursionError as error:
        raise Refused(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(found, dict):
        raise Refused(400, "the body is not a JSON object")
    return found


# ------------------------------------------------------------------------------------------------------- forms


def pictures_of(content_type: str, body: bytes, most: int) -> list[tuple[str, bytes]]:
    """The (name, content) of each file of a multipart form; of any other body, that body. Raises `Refused`."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        if not body:
            raise Refused(400, "the body is empty; send a picture, or a form with files")
        return [("image", body)]
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise Refused(400, "the form has no boundary")
    files = _files(body, (boundary[1] or boundary[2]).encode("latin-1"), most)
    if not files:
        raise Refused(400, "the form has no file; send pictures as files, as curl -F image=@photo.jpg does")
    return files


def _files(body: bytes, boundary: bytes, most: int) -> list[tuple[str, bytes]]:
    """The parts of a form that have a file name, in order."""
    delimiter = b"\r\n--" + boundary
    parts = (b"\r\n" + body).split(delimiter, most + 2)  # what precedes the first, the parts, the end
    if len(parts) == most + 3:
        raise Refused(413, f"the form has more than {most} parts, the most images that one request may have")
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise Refused(400, "the form is cut off")
    return [file for part in parts[1:-1] if (file := _file(part)) is not None]


def _file(part: bytes) -> tuple[str, bytes] | None:
    head, end, content = part.partition(b"\r\n\r\n")
    if not end or len(head) > MOST_HEADERS:
        raise Refused(400, "the form has a part without headers, or with too many")
    text = head.lstrip(b" \t").removeprefix(b"\r\n").decode("utf-8", "backslashreplace")  # as curl and browsers write
    try:
        name = HeaderParser().parsestr(text + "\r\n\r\n").get_filename()
    except Exception:  # an encoded name that is none: Python's parser fails in many ways
        name = "image"
    return None if name is None else (printable(name), content)
