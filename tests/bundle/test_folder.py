"""Files, hashes, verification: what was touched is refused before it is used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from byol.bundle.folder import Bundle
from byol.bundle.parity import compare_features
from byol.bundle.schema import BundleError
from byol.serve import Encoder
from byol.serve.proof import verify
from tests.support.command_line import byol
from tests.support.tiny import tiny_manifest, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")


# -------------------------------------------------------------------------------------------------- bundle files


def test_every_bit_of_every_file_counts(bundle: Path) -> None:
    """A flipped bit anywhere is refused before the file is used, whatever the file."""
    opened = Bundle.open(bundle)
    flips = 0
    for path in sorted(bundle.iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), 1 if path.name == "manifest.json" else 3):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            with pytest.raises(BundleError):
                Bundle.open(bundle) if path.name == "manifest.json" else opened.read(path.name)
            flips += 1
        path.write_bytes(content)
    assert flips > 3000
    assert verify(bundle).ok


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_truncated_spliced_and_swapped_files_are_refused(bundle: Path, data: st.DataObject) -> None:
    names = sorted(path.name for path in bundle.iterdir() if path.name != "manifest.json")
    name = data.draw(st.sampled_from(names))
    path = bundle / name
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    changed = content[:start] + data.draw(st.binary(max_size=40)) + content[end:]
    if changed == content:
        return
    path.write_bytes(changed)
    try:
        with pytest.raises(BundleError):
            Bundle.open(bundle).read(name)
        assert not verify(bundle).ok
    finally:
        path.write_bytes(content)


def test_weights_in_another_file_are_refused_before_a_session(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    from onnx.external_data_helper import set_external_data

    model = onnx.load(bundle / "encoder.onnx")
    set_external_data(model.graph.initializer[0], "../secret.bin")
    model.graph.initializer[0].ClearField("raw_data")
    (bundle / "encoder.onnx").write_bytes(model.SerializeToString())
    tiny_manifest(bundle, 16, 8).write(bundle)  # hashes and all

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a session was created")

    monkeypatch.setattr("byol.serve.pipeline.open_session", never)
    with pytest.raises(BundleError, match=r"does not say where .* lies in another file"):
        Encoder(bundle, "cpu")


def test_digest_is_the_hash_of_the_manifest_file(bundle: Path) -> None:
    assert Bundle.open(bundle).digest == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


def test_whole_bundle_verifies(bundle: Path) -> None:
    report = verify(bundle)
    assert report.ok
    assert set(report.files.values()) == {"ok"}
    assert report.golden["encoder.onnx"]["images"] == 4
    assert report.golden["encoder.onnx"]["max_relative_error"] < 1e-5


@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.safetensors", "golden.safetensors", "README.md"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "append", "remove", "folder"])
def test_any_damage_is_found(bundle: Path, name: str, damage: str) -> None:
    path = bundle / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "append":
        path.write_bytes(content + b"\0")
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    report = verify(bundle)
    assert not report.ok
    assert [file for file, result in report.files.items() if result != "ok"] == [name]
    assert name in report.problems[0]
    assert report.golden == {}


def test_encoder_refuses_a_flipped_weight_before_any_session(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("a session was created from a damaged file")

    monkeypatch.setattr("byol.serve.pipeline.open_session", never)
    content = bytearray((bundle / "encoder.onnx").read_bytes())
    content[-50] ^= 1
    (bundle / "encoder.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"encoder\.onnx does not have the manifest's sha256"):
        Encoder(bundle, device="cpu")


def test_a_manifest_of_another_graph_is_found(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    stated = manifest.onnx
    wrong = (("opset", replace(stated, opset=7), 7, 20), ("ir_version", replace(stated, ir_version=4), 4, 10))
    for what, graph, version, found in wrong:
        replace(manifest, onnx=graph).write(bundle)
        problem = f"encoder.onnx is refused: manifest.json says {what} {version}, it has {found}"
        assert verify(bundle).problems == [problem]


def test_golden_features_that_are_not_reproduced_fail(tmp_path: Path) -> None:
    """Every hash is right, but graph and golden features are of different encoders."""
    one, other = write_tiny_bundle(tmp_path / "one"), write_tiny_bundle(tmp_path / "other", seed=1)
    (one / "golden.safetensors").write_bytes((other / "golden.safetensors").read_bytes())
    tiny_manifest(one, 16, 8).write(one)
    report = verify(one)
    assert set(report.files.values()) == {"ok"}
    assert not report.ok
    assert "does not reproduce the golden features" in report.problems[0]


def golden_images(count: int, size: int) -> np.ndarray:
    return np.zeros((count, size, size, 3), np.uint8)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"images": np.zeros((2, 16, 16, 3), np.uint8)}, "must hold `features`, `images`"),
        (
            {"images": np.zeros((2, 8, 8, 3), np.uint8), "features": np.zeros((2, 8), np.float32)},
            "images must be uint8",
        ),
        ({"images": np.zeros((2, 16, 16, 3), np.uint8), "features": np.zeros((3, 8), np.float32)}, "features must be"),
        (
            {"images": np.zeros((0, 16, 16, 3), np.uint8), "features": np.zeros((0, 8), np.float32)},
            "images must be uint8",
        ),
    ],
)
def test_wrong_golden_tensors_are_reported(bundle: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, bundle / "golden.safetensors")
    tiny_manifest(bundle, 16, 8).write(bundle)
    assert message in verify(bundle).problems[0]


def test_graph_that_does_not_fit_the_manifest_is_refused(tmp_path: Path) -> None:
    one, other = write_tiny_bundle(tmp_path / "one", dim=8), write_tiny_bundle(tmp_path / "other", dim=9)
    (one / "encoder.onnx").write_bytes((other / "encoder.onnx").read_bytes())
    tiny_manifest(one, 16, 8).write(one)
    with pytest.raises(BundleError, match=r"has the interface .*\[9\].*, the manifest says"):
        Encoder(one, device="cpu")


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a" * 50])
def test_graph_that_is_no_graph_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "encoder.onnx").write_bytes(content)
    tiny_manifest(bundle, 16, 8).write(bundle)
    with pytest.raises(BundleError, match=r"encoder\.onnx is refused: "):
        Encoder(bundle, device="cpu")


def test_places_that_are_no_bundle_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing is not a folder"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"is not a bundle: it holds no manifest\.json"):
        Bundle.open(tmp_path)


def test_of_a_run_and_its_checkpoint_the_command_is_named(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"versions": {"byol": "0.1.0"}}))
    (run / "last.safetensors").touch()
    for path, said in ((run, "is a run, not a bundle; export it first"), (run / "last.safetensors", "is not a folder")):
        done = byol("info", path)
        assert done.code == 1
        assert f"{path} {said}" in done.err
        assert f"byol export '{path}' --out BUNDLE" in done.err


# ---------------------------------------------------------------------------------------------- compare_features


def test_compare_features_against_hand_written_numbers() -> None:
    expected = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    found = np.array([[3.0, 4.0], [1.0, 0.1]], np.float32)
    error, cosine = compare_features(expected, found)
    assert error == pytest.approx(0.1)
    assert cosine == pytest.approx(1 / np.sqrt(1.01))
    assert compare_features(expected * 1e6, found * 1e6) == pytest.approx((error, cosine))


def test_compare_features_with_zeros_and_values_that_are_not_finite() -> None:
    zeros, ones = np.zeros((1, 3)), np.ones((1, 3))
    assert compare_features(zeros, zeros) == (0.0, 1.0)
    assert compare_features(zeros, ones)[1] == 0.0
    assert compare_features(ones, ones * np.nan) == (float("inf"), -1.0)
    with pytest.raises(ValueError, match="equal shapes"):
        compare_features(ones, np.ones((2, 3)))
