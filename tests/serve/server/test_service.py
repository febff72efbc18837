"""The search for neighbours, where the server runs it."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from byol.bundle.folder import Bundle
from byol.images.shards.schema import DIGEST_KEY
from byol.serve.server import process
from byol.serve.server.service import NEIGHBOURS, Service
from tests.support.command_line import byol
from tests.support.inputs.odd_images import encoded, picture
from tests.support.tiny import write_tiny_bundle


def test_neighbours_are_searched_apart_from_the_event_loop_and_count_as_waiting(tmp_path: Path) -> None:
    from PIL import Image

    bank = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    np.savez(tmp_path / "bank.npz", features=bank, ids=np.array([f"{row}.png" for row in range(20)]))
    service = Service(write_tiny_bundle(tmp_path / "bundle"), "cpu", index=tmp_path / "bank.npz")
    index, seen = service.index, list[tuple[str, int]]()
    assert index is not None
    search = index._search

    def watched(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append((threading.current_thread().name, service.bounds.waiting))
        return search(features)

    index._search = watched  # type: ignore[assignment]
    try:
        photo = encoded(Image.fromarray(picture(16, 16)), "PNG")
        found = asyncio.run(service.encoder([photo, photo], index.nearest))
        assert seen == [("search_0", 2)]
        assert service.bounds.waiting == 0
        assert found.shape == (2, 2, NEIGHBOURS)
        similarity, rows = search(service.opened([picture(16, 16)]))
        (first, _) = index.described(found)
        assert [one["id"] for one in first["neighbors"]] == [f"{row}.png" for row in rows[0]]
        np.testing.assert_allclose([one["similarity"] for one in first["neighbors"]], similarity[0], atol=1e-5)
    finally:
        service.close()


@pytest.mark.parametrize(
    ("words", "host", "warned"), [((), "127.0.0.1", False), (("--host", "0.0.0.0"), "0.0.0.0", True)]
)
def test_it_listens_on_this_machine_unless_told_otherwise(
    words: tuple[str, ...], host: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def run(service: Service, listening: socket.socket, log: bool) -> None:
        found.append(listening.getsockname()[0])
        service.close()
        listening.close()

    monkeypatch.setattr(process, "run", run)
    done = byol("serve", write_tiny_bundle(tmp_path / "bundle"), "--port", 0, "--device", "cpu", *words)
    assert (done.code, found) == (0, [host]), done.err
    assert ("password" in done.err) == warned, done.err


def test_an_index_that_does_not_say_whose_it_is_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(service: Service, listening: socket.socket, log: bool) -> None:
        service.close()
        listening.close()

    monkeypatch.setattr(process, "run", run)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    digest = {DIGEST_KEY: np.array(Bundle.open(bundle).digest)}
    for named, warned in (dict[str, np.ndarray](), True), (digest, False):
        arrays: dict[str, Any] = {"features": np.eye(8, dtype=np.float32), **named}
        np.savez(tmp_path / "f.npz", **arrays)
        done = byol("serve", bundle, "--port", 0, "--device", "cpu", "--index", tmp_path / "f.npz")
        assert (done.code, "f.npz does not say which encoder computed it" in done.err) == (0, warned), done.err
