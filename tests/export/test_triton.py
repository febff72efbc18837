"""The model repository: Triton's own protobuf reads it, and it says of every model what its session says."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from byol.bundle.folder import Bundle
from byol.export.triton import write_repository
from byol.serve import Encoder
from tests.support.command_line import byol
from tests.support.documents import code
from tests.support.small import picture
from tests.support.tiny import write_tiny_bundle

KINDS = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}


def parsed(path):
    proto = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(), proto.ModelConfig())


def described(ends):
    return [(e.name, KINDS[e.type], [d if isinstance(d, int) else -1 for d in e.shape[1:]]) for e in ends]


def configured(config, ends):
    kind = type(config).DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
    return [(e.name, kind.values_by_number[e.data_type].name, list(e.dims)) for e in ends]


def test_every_graph_is_a_model_with_the_interface_of_its_session(place, classified, tmp_path):
    names = write_repository(place / "with", tmp_path / "models")
    assert names == ["classifier", "encoder_any_size", "encoder_fp16", "encoder_int8", "encoder"]
    for name in names:
        model = tmp_path / "models" / name
        config = parsed(model / "config.pbtxt")
        session = onnxruntime.InferenceSession(model / "1" / "model.onnx")
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 256)
        assert configured(config, config.input) == described(session.get_inputs())
        assert configured(config, config.output) == described(session.get_outputs())
        assert config.dynamic_batching.max_queue_delay_microseconds > 0
        for warmup in config.model_warmup:
            sample = warmup.inputs["images"]
            assert sample.zero_data
            session.run(None, {"images": np.zeros((min(warmup.batch_size, 2), *sample.dims), np.uint8)})
        assert [warmup.batch_size for warmup in config.model_warmup] == [1, 256]


def test_the_models_are_the_bundles_files(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    for _ in range(2):  # an older repository is replaced
        assert write_repository(bundle, tmp_path / "models") == ["encoder"]
    assert (tmp_path / "models" / "encoder" / "1" / "model.onnx").read_bytes() == Bundle.open(bundle).read(
        "encoder.onnx"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "models"]


def test_something_else_is_not_replaced(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a model repository"):
        write_repository(bundle, tmp_path / "taken")


def test_the_repositorys_other_models_stay(place, tmp_path):
    bundle, models = write_tiny_bundle(tmp_path / "bundle"), tmp_path / "models"
    (models / "bert" / "1").mkdir(parents=True)
    (models / "bert" / "config.pbtxt").write_text('name: "bert"')
    (models / "bert" / "1" / "model.onnx").write_bytes(b"precious")
    write_repository(place / "bundle", models)
    assert (models / "encoder_int8").is_dir()
    write_repository(bundle, models)  # which has no int8
    assert sorted(path.name for path in models.iterdir()) == ["bert", "encoder"]
    assert (models / "bert" / "1" / "model.onnx").read_bytes() == b"precious"
    (models / "encoder" / "config.pbtxt").write_text('name: "encoder"')
    done = byol("export", place / "run", "--out", tmp_path / "b", "--triton", models)
    assert (done.code, "has a model encoder that byol did not write" in done.err) == (2, True)
    assert not (tmp_path / "b").exists()  # said before the work


def test_export_writes_it(quick, tmp_path):
    done = byol("export", quick / "run", "--out", tmp_path / "b", "--triton", tmp_path / "models")
    assert (done.code, "model repository with encoder\n" in done.out) == (0, True), done.err
    assert parsed(tmp_path / "models" / "encoder" / "config.pbtxt").name == "encoder"


@contextlib.contextmanager
def inference_server(model, name):
    """The address of a server that answers for one model by Triton's HTTP protocol (KServe v2, binary tensors in)."""
    session = onnxruntime.InferenceSession(model)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            split = int(self.headers["Inference-Header-Content-Length"])
            (tensor,) = json.loads(body[:split])["inputs"]
            assert (self.path, tensor["name"], tensor["datatype"]) == (f"/v2/models/{name}/infer", "images", "UINT8")
            pixels = np.frombuffer(body[split:], np.uint8).reshape(tensor["shape"])
            (features,) = session.run(["features"], {"images": pixels})
            output = {
                "name": "features",
                "datatype": "FP32",
                "shape": features.shape,
                "data": features.ravel().tolist(),
            }
            answer = json.dumps({"model_name": name, "outputs": [output]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_the_documented_client_gets_the_encoders_features(tmp_path, monkeypatch):
    """Triton's own client, and of the server what it speaks: the server itself is not installed here."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    turned = Image.Exif()
    turned[0x0112] = 6  # a phone held upright
    picture(3, size=(40, 30)).save(tmp_path / "photo.jpg", exif=turned)
    monkeypatch.chdir(tmp_path)
    (block,) = code("triton.md", "Serving with Triton")
    names: dict[str, Any] = {}
    with inference_server(bundle / "encoder.onnx", "encoder") as address:
        exec(block.replace("localhost:8000", address), names)
    np.testing.assert_allclose(names["features"], Encoder(bundle, "cpu")(["photo.jpg"]), rtol=1e-5, atol=1e-6)
