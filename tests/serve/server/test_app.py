"""`byol serve` over real HTTP: every protocol answers with what the bundle's own graphs give."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from byol.serve import Encoder, ImageClassifier
from tests.support.command_line import byol
from tests.support.inputs.odd_images import bad_images, odd_images
from tests.support.tiny import assert_same_features
from tests.support.web.servers import Served, pixels_of, serving, write_classified


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def bundle(root: Path) -> Path:
    return write_classified(root)


@pytest.fixture(scope="module")
def server(bundle: Path, root: Path) -> Iterator[Served]:
    done = byol("extract", bundle, root / "images", "--out", root / "features.parquet", "--device", "cpu")
    assert done.code == 0, done.err
    with serving(bundle, "--index", root / "features.parquet") as served:
        yield served


@pytest.fixture(scope="module")
def paths(root: Path, bundle: Path) -> list[Path]:
    return sorted((root / "images").rglob("*.png"))


@pytest.fixture(scope="module")
def expected(bundle: Path, paths: list[Path]) -> np.ndarray:
    return Encoder(bundle, "cpu")(paths)


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def embed(server: Served, **changes: Any) -> Any:
    return server.client.post("/v1/embeddings", json={"model": "encoder", **changes})


# ------------------------------------------------------------------------------------------------------- plain


def test_files_of_a_form_get_their_features(server: Served, paths: list[Path], expected: np.ndarray) -> None:
    files = [("image", (path.name, path.read_bytes(), "image/png")) for path in paths]
    answer = server.client.post("/features", files=files, data={"comment": "no file"})
    assert answer.status_code == 200
    images = answer.json()["images"]
    assert [image["name"] for image in images] == [path.name for path in paths]
    assert_same_features(np.array([image["features"] for image in images], np.float32), expected)


def test_a_body_that_is_no_form_is_one_picture(server: Served, paths: list[Path], expected: np.ndarray) -> None:
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        answer = server.client.post("/features", content=paths[0].read_bytes(), headers={"content-type": kind})
        assert_same_features(np.array([answer.json()["images"][0]["features"]], np.float32), expected[:1])


def test_classes(server: Served, bundle: Path, paths: list[Path]) -> None:
    files = [("image", (path.name, path.read_bytes())) for path in paths]
    images = server.client.post("/classes", files=files).json()["images"]
    probabilities = ImageClassifier(bundle, "cpu")(paths)
    np.testing.assert_allclose([list(image["probabilities"].values()) for image in images], probabilities, atol=1e-5)
    classes = ("cat", "dog")
    assert [image["class"] for image in images] == [classes[best] for best in probabilities.argmax(1)]


def test_neighbours(server: Served, root: Path, paths: list[Path]) -> None:
    (image,) = server.client.post("/neighbors", content=paths[3].read_bytes()).json()["images"]
    nearest = image["neighbors"][0]
    assert (nearest["id"], nearest["label"]) == (paths[3].relative_to(root / "images").as_posix(), "cat")
    assert nearest["similarity"] == pytest.approx(1, abs=1e-5)
    assert len(image["neighbors"]) == 8


def test_an_index_of_another_encoder_is_refused(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=np.ones((3, 5), np.float32))
    done = byol("serve", bundle, "--index", tmp_path / "f.npz", "--port", "0")
    assert done.code == 1
    assert "extract it again" in done.err


def test_odd_pictures_are_read(server: Served, bundle: Path) -> None:
    files = [("image", (name, content)) for name, content in odd_images().items()]
    assert len(server.client.post("/features", files=files).json()["images"]) == len(files)


@pytest.mark.parametrize("name", bad_images())
def test_one_bad_picture_is_named_with_its_reason(server: Served, paths: list[Path], name: str) -> None:
    good, bad = paths[0].read_bytes(), bad_images()[name]
    answer = server.client.post("/features", files=[("image", ("good.png", good)), ("image", (name, bad))])
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(f"{name}: ")
    answer = embed(server, input=[data_url(good), data_url(bad)])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[1]"
    assert len(answer.json()["error"]["message"]) > len("input[1]: ")


def test_a_bundle_without_a_classifier(root: Path, bundle: Path, paths: list[Path]) -> None:
    with serving(root / "bundle", "--no-log") as served:
        answer = served.client.post("/classes", content=paths[0].read_bytes())
        assert (answer.status_code, answer.json()) == (404, {"detail": "this bundle has no classifier"})
        assert served.client.post("/features", content=paths[0].read_bytes()).status_code == 200
        assert served.client.get("/v2/models/classifier").status_code == 404
        assert len(served.lines) == 2  # with --no-log, nothing but what is served, and where


# ------------------------------------------------------------------------------------------------------ OpenAI


def test_embeddings(server: Served, paths: list[Path], expected: np.ndarray) -> None:
    urls = [data_url(path.read_bytes()) for path in paths]
    answer = embed(server, input=urls, encoding_format="float", user="somebody").json()
    assert {key: answer[key] for key in ("object", "model", "usage")} == {
        "object": "list",
        "model": "encoder",
        "usage": {"prompt_tokens": len(urls), "total_tokens": len(urls)},
    }
    assert [entry["index"] for entry in answer["data"]] == list(range(len(urls)))
    assert_same_features(np.array([entry["embedding"] for entry in answer["data"]], np.float32), expected)
    packed = embed(server, input=urls[0], encoding_format="base64", dimensions=8).json()["data"][0]["embedding"]
    assert_same_features(np.frombuffer(base64.b64decode(packed), "<f4")[None], expected[:1])


@pytest.mark.parametrize(
    ("changes", "status", "place"),
    [
        ({"input": "https://example.org/cat.jpg"}, 400, "input[0]"),
        ({"input": "file:///etc/passwd"}, 400, "input[0]"),
        ({"input": "a text"}, 400, "input[0]"),
        ({"input": [1, 2, 3]}, 400, "input[0]"),
        ({"input": "data:image/png;base64,AAA"}, 400, "input[0]"),
        ({"input": "data:image/png;base64,AA\n\u00e9="}, 400, "input[0]"),
        ({"input": []}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"input": {"url": "x"}}, 400, "input"),
        ({"input": ["data:image/png;base64,AAAA"] * 129}, 413, "input"),
        ({"input": "", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "", "dimensions": 4}, 400, "dimensions"),
        ({"input": "", "model": "gpt"}, 404, "model"),
        ({"input": "", "model": None}, 400, "model"),
    ],
)
def test_embeddings_name_the_field_at_fault(server: Served, changes: Any, status: int, place: str) -> None:
    answer = embed(server, **changes)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (place, "invalid_request_error")
    assert error["message"]


def test_models_of_openai(server: Served) -> None:
    assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["encoder"]
    assert server.client.get("/v1/models/encoder").json()["object"] == "model"
    assert server.client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


# ------------------------------------------------------------------------------------------------------ KServe


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def tensor(values: np.ndarray, kind: str = "UINT8", binary: bool = True) -> triton.InferInput:
    made = triton.InferInput("images", values.shape, kind)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def test_tritons_client_sees_the_server(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("encoder", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "byol"
    metadata = client.get_model_metadata("classifier")
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 16, 16, 3]}]
    assert metadata["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}]


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_the_features(
    client: triton.InferenceServerClient, bundle: Path, paths: list[Path], expected: np.ndarray, binary: bool
) -> None:
    pixels = pixels_of(bundle, paths)
    wanted = [triton.InferRequestedOutput("features", binary_data=binary)]
    answer = client.infer("encoder", [tensor(pixels, binary=binary)], outputs=wanted, request_id="7")
    assert_same_features(answer.as_numpy("features"), expected)
    assert answer.get_response()["id"] == "7"
    probabilities = client.infer("classifier", [tensor(pixels, binary=binary)]).as_numpy("probabilities")
    np.testing.assert_allclose(probabilities, ImageClassifier(bundle, "cpu")(paths), atol=1e-5)


def test_tritons_client_sends_encoded_pictures(
    client: triton.InferenceServerClient, paths: list[Path], expected: np.ndarray
) -> None:
    pictures = np.array([path.read_bytes() for path in paths], object)
    assert_same_features(client.infer("encoder", [tensor(pictures, "BYTES")]).as_numpy("features"), expected)
    bad = tensor(np.array([pictures[0], b"none"], object), "BYTES")
    with pytest.raises(InferenceServerException, match=r"images\[1\]: not an image"):
        client.infer("encoder", [bad])


def test_encoded_pictures_in_json_are_base64(server: Served, paths: list[Path], expected: np.ndarray) -> None:
    data = [base64.b64encode(path.read_bytes()).decode() for path in paths[:2]]
    given = {"name": "images", "datatype": "BYTES", "shape": [2, 1], "data": [[text] for text in data]}
    answer = server.client.post("/v2/models/encoder/versions/1/infer", json={"inputs": [given]}).json()
    assert answer["outputs"][0]["shape"] == [2, 8]
    assert_same_features(np.reshape(answer["outputs"][0]["data"], (2, 8)).astype(np.float32), expected[:2])


GOOD = {"name": "images", "datatype": "UINT8", "shape": [1, 16, 16, 3], "data": [0] * 768}


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1, 16, 16, 4]},
        {"shape": [-1, 16, 16, 3]},
        {"shape": [True, 16, 16, 3]},
        {"shape": [0, 16, 16, 3]},
        {"shape": []},
        {"shape": "all"},
        {"shape": [2, 16, 16, 3]},
        {"datatype": "FP32"},
        {"name": "pictures"},
        {"data": [0] * 767},
        {"data": [256] * 768},
        {"data": [0.5] * 768},
        {"data": ["0"] * 768},
        {"data": [[0], 1]},
        {"data": {"0": 0}},
        {"data": 768},
        {"data": None},
        {"parameters": {"binary_data_size": 768}},
        {"parameters": {"shared_memory_region": "x"}},
        {"parameters": []},
        {"datatype": "BYTES", "shape": [1], "data": ["?"]},
        {"datatype": "BYTES", "shape": [2], "data": ["AAAA"]},
        {"datatype": "BYTES", "shape": [1], "data": [3]},
    ],
)
def test_a_wrong_tensor_is_refused(server: Served, changes: dict[str, Any]) -> None:
    answer = server.client.post("/v2/models/encoder/infer", json={"inputs": [{**GOOD, **changes}]})
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_other_requests_of_kserve_are_refused(server: Served) -> None:
    def status(body: Any, model: str = "encoder", **headers: str) -> int:
        content = body if isinstance(body, bytes) else json.dumps(body)
        answer = server.client.post(f"/v2/models/{model}/infer", content=content, headers=headers)
        assert answer.json()["error"]
        return int(answer.status_code)

    assert status({"inputs": [GOOD]}, "other") == 404
    assert status({"inputs": [GOOD, GOOD]}) == 400
    assert status({"inputs": [{**GOOD, "shape": [129, 16, 16, 3]}]}) == 413
    assert status({"inputs": [GOOD], "outputs": [{"name": "logits"}]}) == 400
    assert status({"inputs": [GOOD], "id": 7}) == 400
    assert status(b"[]") == 400
    assert status(b"{", **{"Inference-Header-Content-Length": "2"}) == 400
    assert status(b"{}", **{"Inference-Header-Content-Length": "-1"}) == 400
    assert status(b"{}more", **{"Inference-Header-Content-Length": "2"}) == 400


# ------------------------------------------------------------------------------------------------------- whole


def test_requests_at_once_get_their_own_answers(server: Served, paths: list[Path], expected: np.ndarray) -> None:
    def ask(turn: int) -> None:
        place = turn % len(paths)
        answer = server.client.post("/features", content=paths[place].read_bytes())
        found = np.array([answer.json()["images"][0]["features"]], np.float32)
        assert_same_features(found, expected[place : place + 1])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(200)))


def test_metrics(server: Served, paths: list[Path]) -> None:
    name = 'byol_requests_total{route="/features",status="200"}'
    before = server.figure(name), server.figure('byol_images_total{model="encoder"}')
    server.client.post("/features", files=[("image", path.read_bytes()) for path in paths[:3]])
    assert server.figure(name) == before[0] + 1
    assert server.figure('byol_images_total{model="encoder"}') == before[1] + 3
    assert server.figure("byol_queue_images") == server.figure("byol_body_bytes") == 0
    assert server.figure('byol_stage_seconds_count{stage="decode"}') >= 3


def test_the_description_lists_the_routes_and_needs_no_other_host(server: Served) -> None:
    described = server.client.get("/openapi.json").json()["paths"]
    posts = {path for path, methods in described.items() if "post" in methods}
    assert posts == {"/features", "/classes", "/neighbors", "/v1/embeddings", "/v2/models/{name}/infer"}
    assert all("requestBody" in described[path]["post"] for path in posts)
    assert [server.client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


def test_every_answer_has_the_headers_of_security(server: Served) -> None:
    for path in ("/", "/nowhere", "/v2"):
        headers = server.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_errors_come_in_the_form_of_their_protocol(server: Served) -> None:
    assert server.client.get("/v1/embeddings").json()["error"]["message"] == "Method Not Allowed"
    assert server.client.get("/v2/nowhere").json() == {"error": "Not Found"}
    assert server.client.get("/nowhere").json() == {"detail": "Not Found"}
