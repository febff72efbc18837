"""What a server takes upon itself, and its answer to what is beyond."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from byol.serve.server.app import create_app
from byol.serve.server.service import Service
from tests.support.inputs.odd_images import encoded, picture
from tests.support.tiny import write_tiny_bundle


def test_beyond_the_memory_clients_are_asked_to_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOL_SERVER_MEMORY_MB", "1")
    service = Service(write_tiny_bundle(tmp_path / "bundle"), "cpu")
    more, photo = bytes(60_000), encoded(Image.fromarray(picture(16, 16)), "PNG")

    async def all_of_it() -> None:
        held, end = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield bytes(1_000_000)
            held.set()  # as the server asks for more
            await end.wait()

        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            first = asyncio.create_task(client.post("/features", content=slow()))
            await held.wait()
            refused = await client.post("/features", content=more)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "take all the memory that this server gives them; try again later" in refused.json()["detail"]
            error = (await client.post("/v1/embeddings", content=more)).json()["error"]
            assert error["code"] == "rate_limit_exceeded"
            assert (await client.post("/features", content=photo)).status_code == 200  # there is room for it
            end.set()
            assert (await first).status_code == 400  # zeros are no picture
            assert service.bounds.held == 0
            assert (await client.post("/features", content=more)).status_code == 400

    try:
        asyncio.run(all_of_it())
    finally:
        service.close()
