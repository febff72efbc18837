"""The process that listens: one, with all cores. It drains when asked to end, and waits for no client for ever."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from byol.serve.server.app import create_app
from byol.serve.server.front import Front
from byol.serve.server.service import Service
from byol.signals import HANG_UP, handled
from byol.text import reason_of

KEEP_ALIVE = 75  # seconds that a connection may rest between requests: longer than load balancers let it
BACKLOG = 1024
FLUSH = 10  # seconds for the last answers to be taken, at the end, and before that for the last refusals


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ValueError` that says why there is none."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ValueError(f"cannot listen on {host}, port {port}: {reason_of(error)}; choose other ones") from error
    # Connections inherit it. asyncio sets it only on sockets that name their protocol; without it, an answer in two
    # parts waits 40 ms for the client to acknowledge the first.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def address_of(listening: socket.socket) -> str:
    """Its URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(service: Service, listening: socket.socket, log: bool) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; then finish what was accepted. A second signal ends at once."""
    front = Front(create_app(service), service, log)
    config = uvicorn.Config(
        front,
        http="h11",  # in Python, and the one that bounds headers
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=FLUSH,
    )
    try:
        _Server(config, front, service).run([listening])
    finally:
        service.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, front: Front, service: Service) -> None:
        super().__init__(config)
        self._front, self._bounds = front, service.bounds
        self._stuck: dict[Any, tuple[tuple[Any, ...], float]] = {}

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Our own handling: uvicorn would raise the signal again at the end, as if the work had failed."""
        with handled((signal.SIGTERM, signal.SIGINT, HANG_UP), self._asked_to_end):
            yield

    def _asked_to_end(self, number: int, _frame: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = self._bounds.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            self._end_stuck()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted; what comes meanwhile is told to go elsewhere, for `FLUSH` seconds at most."""
        end = math.inf
        while not self.force_exit and (self._front.in_flight or (self._front.refusing and time.monotonic() < end)):
            if not self._front.in_flight:
                end = min(end, time.monotonic() + FLUSH)
            await asyncio.sleep(0.05)
            self._end_stuck()
        await super().shutdown(sockets)

    def _end_stuck(self) -> None:
        """Cut connections whose client sends no request, or takes no answer, for too long."""
        now, before = time.monotonic(), self._stuck
        self._stuck = {}
        for connection in list(self.server_state.connections):
            state = _waits_for(connection)
            if state is None:
                continue
            known = before.get(connection)
            since = known[1] if known and known[0] == state else now
            if now - since > self._bounds.seconds:
                connection.transport.abort()
            else:
                self._stuck[connection] = (state, since)


def _waits_for(connection: Any) -> tuple[Any, ...] | None:
    """What a connection waits for its client to do: it is stuck while this stays equal. None: for nothing.

    A request whose headers have come has its own time limit; uvicorn itself ends connections that rest between two.
    """
    cycle = connection.cycle
    if connection.transport.get_write_buffer_size():
        return "take", id(cycle)
    if cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None):
        return "ask", id(cycle)  # the answer is given, but more has come, which is no request so far
    return None
