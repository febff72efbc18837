"""What stands before the routes, without a server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from byol.serve.server.bounds import Bounds
from byol.serve.server.front import Front


def test_who_comes_while_the_server_drains_holds_up_nothing() -> None:
    """A request that will be refused is not waited for, however slowly it is sent."""
    service: Any = SimpleNamespace(bounds=Bounds(), measures=SimpleNamespace(request=lambda *_: None))
    sent, began = list[Any](), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def receive() -> Any:
        began.set()
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async def asked(front: Front, path: str) -> int:
        """How many requests are waited for while one to this path is on its way."""
        began.clear()
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        request = asyncio.create_task(front(scope, receive, send))
        await began.wait()
        counted = front.in_flight
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        return counted

    async def all_of_it() -> None:
        front = Front(app, service, log=False)
        assert await asked(front, "/features") == 1
        service.bounds.draining = True
        assert await asked(front, "/features") == 0
        assert await asked(front, "/metrics") == 1
        assert front.in_flight == front.refusing == 0

    asyncio.run(all_of_it())
