"""What stands before the routes: it counts, logs, refuses while the server drains, and adds headers of security."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
import traceback
from collections.abc import MutableMapping
from typing import Any

from h11 import LocalProtocolError
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from byol.console import note
from byol.serve.server.intake import discard
from byol.serve.server.refusals import CLIENT_GONE, Refused, answer
from byol.serve.server.service import Service

_ALWAYS = ("/metrics", "/v2/health/live", "/v2/health/ready")  # answered while the server drains
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Front:
    """The application with all that; `log`: a line for each request.

    `in_flight`: requests accepted and not yet answered; `refusing`: those that are told that the server is about to
    stop.
    """

    def __init__(self, app: ASGIApp, service: Service, log: bool) -> None:
        self._app, self._service, self._logs, self._lines = app, service, log, Lines()
        self.in_flight = self.refusing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"  # uvicorn is told to leave out the rest
        started, answered = time.perf_counter(), _Answer(send)
        accepted = not self._service.bounds.draining or scope["path"] in _ALWAYS
        self.in_flight += accepted
        self.refusing += not accepted
        try:
            if accepted:
                await self._app(scope, receive, answered)
            else:
                await self._turn_away(scope, receive, answered)
        except ClientDisconnect:
            pass
        except Exception as error:
            self._lines.write("".join(traceback.format_exception(error)))
            await _refused(scope, receive, answered, Refused(500, "the server failed at this request"))
        finally:
            self.in_flight -= accepted
            self.refusing -= not accepted
            self._count(scope, answered.status, time.perf_counter() - started)

    async def _turn_away(self, scope: Scope, receive: Receive, answered: _Answer) -> None:
        with contextlib.suppress(TimeoutError):  # a connection that is closed on unread bytes may lose the answer
            async with asyncio.timeout(self._service.bounds.seconds):
                await discard(Request(scope, receive), self._service.bounds.request_bytes)
        refused = Refused(503, "the server is about to stop; ask another", retry=1)
        await _refused(scope, receive, answered, refused)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._service.measures.request(route, status, seconds)
        if self._logs:
            method = scope["method"] if scope["method"] in _METHODS else "?"
            client = (scope.get("client") or ("-",))[0]
            self._lines.write(f"{client} {method} {route} {status} {1000 * seconds:.0f} ms")


async def _refused(scope: Scope, receive: Receive, answered: _Answer, refused: Refused) -> None:
    if answered.status == CLIENT_GONE:  # nothing was sent so far
        await answer(Request(scope).url.path, refused)(scope, receive, answered)


class _Answer:
    """Sends an answer on, with further headers, and knows its status."""

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, CLIENT_GONE

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kept: MutableMapping[str, Any] = message
            kept["headers"] = [*message.get("headers", []), *_HEADERS]
        with contextlib.suppress(LocalProtocolError):  # uvicorn has answered by itself: the request's rest is broken
            await self._send(message)


class Lines:
    """Lines on standard error, written by a thread of its own: a reader that has stopped stops no request."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue(10_000)
        threading.Thread(target=self._work, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        """Write a line soon; when ten thousand are waiting, not at all."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(line)

    def _work(self) -> None:
        while True:
            note(self._lines.get())
