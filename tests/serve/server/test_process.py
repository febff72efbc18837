"""`byol serve` as a process: hostile clients, too many, slow ones, and its end. Each server has its own limits."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from byol.serve import Encoder
from byol.serve.server.process import listen
from tests.support.command_line import byol
from tests.support.inputs.odd_images import encoded, picture
from tests.support.tiny import assert_same_features, write_tiny_bundle
from tests.support.web.hostile_http import attacks, post
from tests.support.web.servers import Served, memory, serving, write_classified

LIMITS = {"BYOL_SERVER_SECONDS": 2, "BYOL_SERVER_REQUEST_MB": 1, "BYOL_SERVER_IMAGES": 4, "BYOL_SERVER_QUEUE": 8}
LIMITS |= {"BYOL_SERVER_MEMORY_MB": 4, "BYOL_SERVER_PIXELS": 1_000_000}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classified(tmp_path_factory.mktemp("process"))


@pytest.fixture(scope="module")
def strict(bundle: Path) -> Iterator[Served]:
    """A server with small limits."""
    with serving(bundle, **LIMITS) as served:
        yield served


def photo(side: int = 40) -> bytes:
    return encoded(Image.fromarray(picture(side, side)), "PNG")


def features(answer: httpx.Response) -> np.ndarray:
    return np.array([image["features"] for image in answer.json()["images"]], np.float32)


# ----------------------------------------------------------------------------------------------------- hostile


def test_no_answer_waits_for_an_acknowledgement_of_its_first_piece() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()) as _:
        accepted, _address = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_hostile_requests_harm_nobody(bundle: Path) -> None:
    with serving(bundle, BYOL_SERVER_SECONDS=2) as served:
        expected = features(served.client.post("/features", content=photo()))
        attacks(served.url, 100)
        before = memory(served.process.pid) if sys.platform == "linux" else 0
        found = attacks(served.url, 300, seed=100)
        assert {status for _, status in found} <= {0, 100, 200, 400, 404, 405, 408, 411, 413, 415, 429, 431, 501}
        assert found[("valid", 200)] == 30  # among all the others, in every form
        assert_same_features(features(served.client.post("/features", content=photo())), expected)
        assert served.figure("byol_queue_images") == served.figure("byol_body_bytes") == 0
        assert 'status="499"' in served.client.get("/metrics").text  # whose client went away
        assert 'status="5' not in served.client.get("/metrics").text
        if sys.platform == "linux":
            assert memory(served.process.pid) - before < 100
        served.process.send_signal(signal.SIGTERM)
        assert served.said().count("Traceback") == 0
        assert served.process.returncode == 0


def test_limits_of_a_request(strict: Served) -> None:
    client, small, large = strict.client, photo(), encoded(Image.new("RGB", (700, 700)), "PNG")
    too_many = client.post("/features", files=[("image", small)] * 5)
    assert too_many.status_code == 413
    assert "4" in too_many.json()["detail"]
    assert client.post("/features", content=bytes(2 << 20)).status_code == 413
    assert client.post("/features", content=iter([bytes(1 << 19)] * 4)).status_code == 413  # of no stated length
    assert client.post("/features", files=[("image", large)] * 2).status_code == 200
    pixels = client.post("/features", files=[("image", large)] * 3)
    assert pixels.status_code == 413
    assert "1,000,000 pixels" in pixels.json()["detail"]
    assert client.post("/features", content=small, headers={"content-encoding": "gzip"}).status_code == 415
    assert client.post("/features", content=small).status_code == 200


def test_slow_clients_are_ended_and_hold_up_nobody(strict: Served) -> None:
    body = photo()
    slow = [b"", b"POST /fea", post("/features", body)[:-1], post("/features", body[:9], length=9_000)]
    early = socket.create_connection(strict.place, timeout=60)
    early.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
    answer = b""
    while b'"Not Found"}' not in answer:
        answer += early.recv(1000)
    early.sendall(b"x")  # what its body was: the answer is given, so nothing more will be
    connections = [socket.create_connection(strict.place, timeout=60) for _ in range(100)]
    for number, connection in enumerate(connections):
        connection.sendall(slow[number % len(slow)])
    assert strict.client.post("/features", content=body).status_code == 200
    answers = Counter(connection.recv(1000)[9:12] for connection in connections)  # waits until each is ended
    assert answers == {b"": 50, b"408": 50}
    assert early.recv(1000) == b""
    early.close()
    for connection in connections:
        connection.close()
    assert strict.figure("byol_body_bytes") == 0


def test_a_client_that_takes_no_answer_is_cut(strict: Served) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(strict.place)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                connection.send(b"x", socket.MSG_DONTWAIT)
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:
                break
        else:
            pytest.fail("the connection is still open")
    assert strict.client.get("/v2/health/live").status_code == 200


def test_beyond_the_queue_clients_are_asked_to_come_later(bundle: Path) -> None:
    with serving(bundle, BYOL_SERVER_QUEUE=2, BYOL_SERVER_IMAGES=4) as served:
        body = photo(2000)

        def ask(_: int) -> httpx.Response:
            return served.client.post("/features", files=[("image", body)] * 2)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(48)))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)
        alone = served.client.post("/features", files=[("image", body)] * 4)  # alone, none is too large for the queue
        assert alone.status_code == 200
        error = served.client.post("/v1/embeddings", json={"model": "encoder", "input": "x"}).json()["error"]
        assert error["type"] == "invalid_request_error"


# --------------------------------------------------------------------------------------------------- the end


def test_sigterm_answers_all_that_was_accepted(bundle: Path) -> None:
    with serving(bundle) as served:
        body, began, found = photo(1500), threading.Event(), Counter[int | str]()

        def ask() -> None:
            with httpx.Client(base_url=served.url, timeout=60) as client:
                for turn in range(200):
                    try:
                        status = client.post("/features", files=[("image", body)] * 3).status_code
                    except httpx.ConnectError:
                        found["no longer there"] += 1
                        return
                    except httpx.TransportError as error:
                        found[f"lost: {error!r}"] += 1
                        return
                    found[status] += 1
                    if status != 200:
                        return
                    if turn == 2:
                        began.set()

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        assert began.wait(60)
        served.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert found[200] >= 3
        assert set(found) <= {200, 503, "no longer there"}
        assert served.process.wait(60) == 0
        assert "Error" not in served.said()


def test_a_request_on_its_way_at_sigterm_is_finished_and_new_ones_refused(bundle: Path) -> None:
    with serving(bundle) as served, socket.create_connection(served.place, timeout=60) as connection:
        whole = post("/features", photo(), "image/png")
        connection.sendall(whole[:-10])
        while not served.figure("byol_body_bytes"):
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        while served.client.get("/v2/health/ready").status_code != 503:
            time.sleep(0.01)
        refused = served.client.post("/features", content=photo())
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        connection.sendall(whole[-10:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert served.process.wait(60) == 0


def test_a_second_signal_ends_it_at_once(bundle: Path) -> None:
    with serving(bundle, BYOL_SERVER_SECONDS=600) as served:
        with socket.create_connection(served.place, timeout=60) as connection:
            connection.sendall(post("/features", photo(), "image/png")[:-10])
            while not served.figure("byol_body_bytes"):
                time.sleep(0.01)
            served.process.send_signal(signal.SIGHUP)
            while served.client.get("/v2/health/ready").status_code != 503:
                time.sleep(0.01)
            assert served.process.poll() is None  # it waits for the request
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(60) == 0
        assert "Traceback" not in served.said()


def test_a_port_in_use_is_said_in_one_line(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = byol("serve", bundle, "--port", taken.getsockname()[1], "--device", "cpu")
    assert done.code == 2
    assert "in use" in done.err


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("byol.serve.server", "prometheus_client"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    done = byol("serve", write_tiny_bundle(tmp_path / "bundle"))
    assert done.code == 1
    assert "pip install '.[server]'" in done.err


def test_features_are_the_encoders(strict: Served, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo())
    found = features(strict.client.post("/features", content=photo()))
    assert_same_features(found, Encoder(bundle, "cpu")([os.fspath(tmp_path / "a.png")]))
