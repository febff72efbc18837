"""The recipes of docs/serving.md, run as they stand there: each answers with what the bundle's own graphs give."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import onnxruntime
import pytest
from fastapi.testclient import TestClient

from byol.bundle.parity import compare_features
from byol.images.picture.read import read_image
from byol.serve import Encoder, ImageClassifier
from tests.support.documents import code
from tests.support.odd_images import bad_images, odd_images, odd_photographs, write_files


@pytest.fixture(scope="module")
def bundle(place: Path, classified: object) -> Path:
    """A ResNet-18 with a classifier for two classes."""
    return place / "with"


@pytest.fixture(scope="module")
def photos(place: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((place / "test").rglob("*.png"))]


@pytest.fixture(scope="module")
def expected(bundle: Path, place: Path) -> np.ndarray:
    """The features (N, D) of each photo alone."""
    encoder = Encoder(bundle, "cpu")
    return np.concatenate([encoder([path]) for path in sorted((place / "test").rglob("*.png"))])


def write_module(folder: Path, name: str, block: str) -> ModuleType:
    """A block of code as a file, imported."""
    path = folder / f"{name}.py"
    path.write_text(block)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------------- in Python


def test_in_python(bundle: Path, photos: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "photo.jpg").write_bytes(photos[0])
    (block,) = code("serving.md", "In Python")
    ran: dict[str, np.ndarray] = {}
    exec(block, ran)
    assert ran["features"].shape == (1, 512)


def test_threads_at_once_each_get_what_a_lone_call_gives(bundle: Path, place: Path) -> None:
    encoder = Encoder(bundle, "cpu", batch_size=2)
    paths = sorted((place / "test").rglob("*.png"))
    calls = [paths[first : first + count] for first in range(len(paths)) for count in (1, 3)]
    alone = [encoder(call) for call in calls]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(calls)), 4))
    start = threading.Barrier(16)

    def work(turn: int) -> list[np.ndarray]:
        start.wait()
        return [encoder(calls[i]) for i in order[turn::16]]

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(work, range(16)))
    for turn, found in enumerate(results):
        for i, features in zip(order[turn::16], found, strict=True):
            np.testing.assert_array_equal(features, alone[i])


# --------------------------------------------------------------------------------------------- plain onnxruntime


def test_plain_onnxruntime_gives_the_same_features(bundle: Path, tmp_path: Path) -> None:
    (block,) = code("serving.md", "Plain onnxruntime")
    imported = {node.module for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import) for a in node.names}
    assert imported == {"json", "os", "sys", "pathlib", "numpy", "onnxruntime", "PIL"}
    write_files(tmp_path / "photos", odd_images() | odd_photographs())
    paths = sorted((tmp_path / "photos").iterdir())
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "encode.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "encode.py", *paths], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    error, cosine = compare_features(Encoder(bundle, "cpu")(paths), np.array(json.loads(done.stdout), np.float32))
    assert error < 1e-5
    assert cosine > 0.999999


# ------------------------------------------------------------------------------------------------------ FastAPI


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUNDLE", str(bundle))
        (block,) = code("serving.md", "FastAPI")
        with TestClient(write_module(tmp_path_factory.mktemp("fastapi"), "app", block).app) as client:
            yield client


def test_fastapi_answers_with_features(client: TestClient, photos: list[bytes], expected: np.ndarray) -> None:
    for photo, features in zip(photos[:4], expected, strict=False):
        answer = client.post("/features", files={"image": photo})
        assert answer.status_code == 200
        np.testing.assert_array_equal(np.array(answer.json(), np.float32), features)


def test_fastapi_serves_a_bundle_without_a_classifier(
    place: Path, tmp_path: Path, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLE", str(place / "bundle"))
    (block,) = code("serving.md", "FastAPI")
    with TestClient(write_module(tmp_path, "bare", block).app) as client:
        assert len(client.post("/features", files={"image": photos[0]}).json()) == 512
        answer = client.post("/classes", files={"image": photos[0]})
    assert (answer.status_code, answer.json()) == (404, {"detail": "this bundle has no classifier"})


def test_fastapi_answers_with_classes(client: TestClient, bundle: Path, place: Path, photos: list[bytes]) -> None:
    session = onnxruntime.InferenceSession(bundle / "classifier.onnx")
    paths = sorted((place / "test").rglob("*.png"))
    transform = Encoder(bundle, "cpu").manifest.preprocess.transform()
    pixels = np.stack([transform(read_image(path)) for path in paths])
    probabilities = session.run(["probabilities"], {"images": pixels})[0]
    answers = [client.post("/classes", files={"image": photo}).json() for photo in photos]
    assert [list(answer) for answer in answers] == [["cat", "dog"]] * len(photos)
    np.testing.assert_allclose([list(answer.values()) for answer in answers], probabilities, atol=1e-5)
    np.testing.assert_allclose(ImageClassifier(bundle, "cpu")(paths), probabilities, atol=1e-5)


@pytest.mark.parametrize("name", bad_images())
def test_fastapi_refuses_what_is_no_image(client: TestClient, name: str) -> None:
    answer = client.post("/features", files={"image": bad_images()[name]})
    assert answer.status_code == 400
    reason = answer.json()["detail"]
    assert reason
    assert "\n" not in reason


def test_fastapi_refuses_a_request_without_an_image(client: TestClient) -> None:
    assert client.post("/features").status_code == 422


@contextlib.contextmanager
def uvicorn(folder: Path, bundle: Path) -> Iterator[str]:
    """The address of a server process that runs app.py of a folder."""
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "0"]
    environment = {**os.environ, "BUNDLE": str(bundle)}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"running on (http://\S+)", line):
                    yield found[1]
                    return
            pytest.fail("".join(lines))
        finally:
            process.terminate()


def test_uvicorn_serves_requests_at_once(
    bundle: Path, tmp_path: Path, photos: list[bytes], expected: np.ndarray
) -> None:
    (block,) = code("serving.md", "FastAPI")
    (tmp_path / "app.py").write_text(block)
    with uvicorn(tmp_path, bundle) as address, httpx.Client(base_url=address, timeout=60) as client:

        def ask(photo: bytes) -> httpx.Response:
            return client.post("/features", files={"image": photo})

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, [*photos, b"no image"]))
    assert [answer.status_code for answer in answers] == [200] * len(photos) + [400]
    np.testing.assert_array_equal(np.array([answer.json() for answer in answers[:-1]], np.float32), expected)


# ---------------------------------------------------------------------------------------------------- Ray Serve


@pytest.fixture
def ray_address(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Ray on two CPUs with the deployment of the documentation."""
    import ray
    from ray import serve

    monkeypatch.setenv("BUNDLE", str(bundle))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (block,) = code("serving.md", "Ray Serve")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(write_module(tmp_path, "app", block).app)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_ray_serve_answers_requests_at_once(ray_address: str, photos: list[bytes], expected: np.ndarray) -> None:
    with httpx.Client(base_url=ray_address, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda photo: client.post("/", content=photo), [*photos, b"no image"]))
    assert [answer.status_code for answer in answers] == [200] * len(photos) + [400]
    assert answers[-1].json() == {"detail": "not an image, or a format that is not supported"}
    found = np.array([answer.json() for answer in answers[:-1]], np.float32)
    error, cosine = compare_features(expected, found)  # other kernels in a batch than alone
    assert error < 1e-5
    assert cosine > 0.999999
