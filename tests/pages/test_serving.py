"""The recipes of docs/serving.md, run as they stand there: each answers with what the bundle's own graphs give."""

from __future__ import annotations

import ast
import importlib.util
import json
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
import pytest

from byol.bundle.parity import compare_features
from byol.serve import Encoder
from tests.support.documents import code
from tests.support.inputs.odd_images import odd_images, odd_photographs, write_files


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
