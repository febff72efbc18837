"""Weights too large for the graph (the limit is lowered here): one bundle, hashed, usable like any other."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file

from byol.bundle import model
from byol.bundle.folder import Bundle, describe_file
from byol.bundle.manifest import Manifest
from byol.bundle.measured import Head
from byol.bundle.schema import BundleError
from byol.export.additions import Additions
from byol.export.exporter import export_bundle
from byol.export.triton import write_repository
from byol.serve import Encoder
from byol.serve.evaluate.linear import LinearProbe
from byol.serve.fuse import save_classifier
from byol.serve.proof import verify

DATA = "encoder.onnx.data"


@pytest.fixture(scope="module")
def bundle(place, tmp_path_factory):
    """The bundle of `place`'s run, written as if its 45 MB were 2 GB."""
    out = tmp_path_factory.mktemp("large") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "LIMIT", 1_000_000)
        export_bundle(place / "run", out)
    return out


def test_it_is_one_bundle_with_every_file_hashed(bundle):
    manifest = Bundle.open(bundle).manifest
    assert {path.name for path in bundle.iterdir()} == set(manifest.files) | {"manifest.json"}
    assert manifest.files[DATA].size > 40e6 > 1e6 > manifest.files["encoder.onnx"].size
    assert verify(bundle).ok
    onnx.checker.check_model(bundle / "encoder.onnx", full_check=True)


def test_features_are_those_of_the_bundle_that_keeps_its_weights_inside(bundle, place):
    images = load_file(bundle / "golden.safetensors")["images"]
    expected = Encoder(place / "bundle", "cpu")(list(images))
    np.testing.assert_array_equal(Encoder(bundle, "cpu")(list(images)), expected)
    plain = onnxruntime.InferenceSession(bundle / "encoder.onnx")  # by its path: the file beside it is found
    np.testing.assert_allclose(plain.run(None, {"images": images})[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_the_weights_is_refused_before_a_session(bundle, damage, monkeypatch):
    path = bundle / DATA
    content = path.read_bytes()
    try:
        if damage == "remove":
            path.unlink()
        else:
            flipped = bytes([content[5000] ^ 1])
            path.write_bytes(content[:-1] if damage == "truncate" else content[:5000] + flipped + content[5001:])
        monkeypatch.setattr("byol.serve.pipeline.open_session", lambda *_: pytest.fail("a session was created"))
        with pytest.raises(BundleError, match=DATA):
            Encoder(bundle, "cpu")
        assert not verify(bundle).ok
    finally:
        path.write_bytes(content)


def rewritten(bundle, change, entries=lambda files: files):
    """Change the first outside tensor's place in the graph, with all hashes made anew."""
    manifest = Bundle.open(bundle).manifest
    old = (bundle / "encoder.onnx").read_bytes(), manifest.to_json()
    graph = onnx.load_model_from_string(old[0])
    tensor = next(t for t in graph.graph.initializer if t.external_data)
    for item in tensor.external_data:
        item.value = change.get(item.key, item.value)
    (bundle / "encoder.onnx").write_bytes(graph.SerializeToString())
    parity = manifest.files["encoder.onnx"].parity
    files = {**manifest.files, "encoder.onnx": describe_file(bundle / "encoder.onnx", "fp32", parity)}
    Manifest(**{**vars(manifest), "files": entries(files)}).write(bundle)
    return old


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"location": "../secret.bin"}, "a file that the manifest does not list"),
        ({"location": "/etc/passwd"}, "a file that the manifest does not list"),
        ({"offset": str(10**9)}, r"needs \d+ bytes of encoder\.onnx\.data"),
        ({"offset": "-4096"}, "does not say where"),
        ({"length": "many"}, "does not say where"),
    ],
)
def test_weights_at_any_other_place_are_refused_before_a_session(bundle, change, message, monkeypatch):
    graph, manifest = rewritten(bundle, change)
    try:
        monkeypatch.setattr("byol.serve.pipeline.open_session", lambda *_: pytest.fail("a session was created"))
        with pytest.raises(BundleError, match=message):
            Encoder(bundle, "cpu")
    finally:
        (bundle / "encoder.onnx").write_bytes(graph)
        (bundle / "manifest.json").write_text(manifest)


def test_classifier_and_triton_share_or_copy_the_file(bundle, tmp_path):
    images, features = Bundle.open(bundle).golden()
    labels = np.arange(len(features)) % 2
    probe = LinearProbe().fit(features.astype(np.float64), labels)
    head = Head(("cat", "dog"), 1.0, "a", 5, "b", 5, 0.5)
    save_classifier(bundle, probe, head, tmp_path / "with")
    assert json.loads((tmp_path / "with" / "manifest.json").read_text())["files"].keys() >= {DATA, "classifier.onnx"}
    assert (tmp_path / "with" / "classifier.onnx").stat().st_size < 1e6
    assert verify(tmp_path / "with").ok
    for name in write_repository(tmp_path / "with", tmp_path / "models"):
        session = onnxruntime.InferenceSession(tmp_path / "models" / name / "1" / "model.onnx")
        assert len(session.run(None, {"images": images})[0]) == len(images)


def test_additions_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "LIMIT", 1_000_000)
    with pytest.raises(ValueError, match="for encoders below 2 GB"):
        export_bundle(place / "run", tmp_path / "b", Additions(any_size=True))
    assert not list(tmp_path.iterdir())
