"""The manifest: what is written reads back, what is not understood is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from byol.bundle.folder import Bundle, describe_file
from byol.bundle.manifest import FileEntry, Manifest, Parity
from byol.bundle.schema import BundleError
from byol.images.decode import Preprocess
from tests.support.tiny import tiny_manifest, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")


def manifest_json(bundle: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return data


# ------------------------------------------------------------------------------------------------------ manifest


def test_manifest_reads_back_as_itself_and_is_deterministic(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    manifest = Bundle.open(bundle).manifest
    assert manifest == tiny_manifest(bundle, 16, 8)
    assert manifest.to_json() == text
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2) + "\n"


def test_manifest_has_the_documented_keys(bundle: Path) -> None:
    data = manifest_json(bundle)
    assert set(data) == {
        "checksum",
        "schema_version", "architecture", "feature_dim", "image_size", "preprocess", "onnx", "files", "training",
        "byol_version",
    }  # fmt: skip
    assert data["preprocess"] == {
        "resize": 16, "crop": 16, "filter": "bicubic", "antialias": True, "exif_orientation": "applied",
        "color": "RGB", "layout": "NHWC", "dtype": "uint8",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "jpeg_margin": 2.25,
    }  # fmt: skip
    assert data["onnx"] == {"opset": 20, "ir_version": 10, "input": "images", "output": "features"}
    assert set(data["files"]["encoder.onnx"]) == {"sha256", "size", "precision", "parity"}
    assert set(data["files"]["golden.safetensors"]) == {"sha256", "size"}
    content = (bundle / "encoder.onnx").read_bytes()
    assert data["files"]["encoder.onnx"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert data["files"]["encoder.onnx"]["size"] == len(content)


def test_training_may_be_left_out(bundle: Path) -> None:
    manifest = replace(Bundle.open(bundle).manifest, training=None)
    manifest.write(bundle)
    assert Bundle.open(bundle).manifest == manifest
    assert "training" not in manifest_json(bundle)


def test_bundles_of_earlier_versions_decode_jpegs_whole(bundle: Path) -> None:
    data = manifest_json(bundle)
    del data["preprocess"]["jpeg_margin"], data["checksum"]
    text = json.dumps(data, sort_keys=True, indent=2) + "\n"
    data["checksum"] = hashlib.sha256(text.encode()).hexdigest()  # as an earlier version computed it
    (bundle / "manifest.json").write_text(json.dumps(data, sort_keys=True, indent=2) + "\n")
    assert Bundle.open(bundle).manifest.preprocess.transform() == Preprocess(16, 16)


def set_to(value: object, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def rename_file(name: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data["files"][name] = data["files"]["README.md"]

    return change


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("newer", set_to(2, "schema_version"), "schema_version is 2, this byol reads 1; upgrade"),
    ("version as text", set_to("1", "schema_version"), "schema_version must be a positive integer"),
    ("version as bool", set_to(True, "schema_version"), "schema_version must be a positive integer"),
    ("version zero", set_to(0, "schema_version"), "schema_version must be a positive integer"),
    ("no version", lambda d: d.pop("schema_version"), "no schema_version"),
    ("newer and otherwise different", lambda d: d.update(schema_version=9, files=None), "schema_version is 9"),
    ("unknown key", set_to(1, "extra"), "unknown key extra"),
    ("unknown nested key", set_to(1, "preprocess", "gamma"), r"unknown key preprocess\.gamma"),
    ("missing key", lambda d: d["onnx"].pop("input"), r"onnx\.input is missing"),
    ("filter", set_to("lanczos", "preprocess", "filter"), r"preprocess\.filter is 'lanczos'.*'bicubic'"),
    ("antialias", set_to(False, "preprocess", "antialias"), r"preprocess\.antialias is False"),
    ("antialias as number", set_to(1, "preprocess", "antialias"), r"preprocess\.antialias must be bool"),
    ("colour", set_to("BGR", "preprocess", "color"), r"preprocess\.color is 'BGR'"),
    ("layout", set_to("NCHW", "preprocess", "layout"), r"preprocess\.layout is 'NCHW'"),
    ("dtype", set_to("float32", "preprocess", "dtype"), r"preprocess\.dtype is 'float32'"),
    ("exif", set_to("ignored", "preprocess", "exif_orientation"), r"preprocess\.exif_orientation is 'ignored'"),
    ("margin", set_to(3.0, "preprocess", "jpeg_margin"), r"preprocess\.jpeg_margin is 3\.0; .*only 2\.25"),
    ("crop", set_to(17, "preprocess", "crop"), "1 <= crop <= resize, crop at most 8192, found 17, 16"),
    ("image size", set_to(15, "image_size"), r"image_size is 15, but preprocess\.crop is 16"),
    ("two means", set_to([0.1, 0.2], "preprocess", "mean"), r"preprocess\.mean must hold 3 numbers"),
    ("mean of text", set_to(["a", 1, 2], "preprocess", "mean"), r"preprocess\.mean\[0\] must be float"),
    ("std zero", set_to([0.0, 1, 1], "preprocess", "std"), r"preprocess\.std must be positive"),
    ("dim zero", set_to(0, "feature_dim"), "feature_dim must be at least 1"),
    ("dim float", set_to(8.0, "feature_dim"), "feature_dim must be int"),
    ("dim null", set_to(None, "feature_dim"), "feature_dim must be int, found null"),
    ("huge number", set_to(10**400, "training", "epochs"), r"training\.epochs is too large"),
    ("files is a list", set_to([], "files"), "files must be an object, found a list"),
    ("no encoder", lambda d: d["files"].pop("encoder.onnx"), r"files lists no encoder\.onnx"),
    ("no golden", lambda d: d["files"].pop("golden.safetensors"), r"files lists no golden\.safetensors"),
    ("bad hash", set_to("ABC", "files", "README.md", "sha256"), r"files\['README\.md'\]: sha256 must be 64 hex"),
    ("bad size", set_to(-1, "files", "README.md", "size"), "size must not be negative"),
    ("precision", set_to("fp8", "files", "encoder.onnx", "precision"), "precision is 'fp8'"),
    ("no parity", lambda d: d["files"]["encoder.onnx"].pop("parity"), "precision and parity belong together"),
    ("edited", set_to([0.5, 0.5, 0.5], "preprocess", "mean"), "checksum does not match its content"),
    ("no checksum", lambda d: d.pop("checksum"), "it has no checksum: written by an older byol"),
    ("training is text", set_to("a lot", "training"), "training must be an object, found a string"),
    ("img_size", set_to(17, "architecture", "img_size"), "architecture.img_size is 17, but image_size is 16"),
    ("escape codes", set_to("\x1b[2J", "architecture", "name"), r"name is '\\x1b\[2J': control characters"),
    ("lone surrogate", set_to("\ud800", "architecture", "name"), "control characters are not allowed"),
    ("turned text", set_to("abc\u202ecba", "architecture", "name"), "control characters are not allowed"),
    ("huge image", set_to(10**9, "preprocess", "crop"), "crop at most 8192"),
    ("huge resize", set_to(10**30, "preprocess", "resize"), "crop at most 8192"),
    ("cosine", set_to(-3.0, "files", "encoder.onnx", "parity", "min_cosine"), "min_cosine must lie in -1 to 1"),
    ("error", set_to(-1.0, "files", "encoder.onnx", "parity", "max_relative_error"), "must not be negative"),
    ("no images", set_to(0, "files", "encoder.onnx", "parity", "images"), "images must be positive"),
    *[
        (f"evaluation {top1}", lambda d, top1=top1: d.update(evaluation={
            "train": "a", "test": "b", "n_train": 1, "n_test": 1, "k": 1, "temperature": 0.1, "top1": top1
        }), message)
        for top1, message in (({"encoder.onnx": 7.0}, "must lie in 0 to 1"), ({"README.md": 0.5}, "is not a graph"))
    ],
    *[
        (f"name {name!r}", rename_file(name), "only plain file names")
        for name in ("../x", "/etc/x", "a/b", "a\\b", "..", ".", "", "C:x", ".hidden", "manifest.json", "a\0b", "x.")
    ],
]  # fmt: skip


@pytest.mark.parametrize("name", ["café\u00a0noir", "می‌خواهم", "猫\u3000犬", "👨‍👩‍👧", "Größe", "a b"])
def test_names_in_any_language_are_read(bundle: Path, name: str) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.training is not None
    manifest = replace(manifest, training=replace(manifest.training, data=name))
    manifest.write(bundle)
    assert Bundle.open(bundle).manifest == manifest


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_manifest_that_is_not_understood_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    data = manifest_json(bundle)
    change(data)
    (bundle / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle)
    assert "manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no schema_version"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"schema_version": 1, "schema_version": 1}', "appears twice"),
        (b'{"schema_version": NaN}', "NaN is not allowed as a number"),
        (b" " * 2_000_000, "larger than"),
    ],
)
def test_manifest_that_is_no_manifest_is_refused(bundle: Path, content: bytes, message: str) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(  # the bundle is only read
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=JSON, data=st.data())
def test_any_value_anywhere_is_read_or_refused(bundle: Path, value: object, data: st.DataObject) -> None:
    original = manifest_json(bundle)
    changed: Any = copy.deepcopy(original)
    place = changed
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        manifest = Manifest.from_json(json.dumps(changed))
    except BundleError:
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_manifest_with_wrong_types_cannot_be_written(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    wrong = replace(Bundle.open(bundle).manifest, byol_version=1)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="byol_version must be str"):
        wrong.write(bundle)
    assert (bundle / "manifest.json").read_bytes() == before


def test_file_entry_needs_parity_exactly_for_graphs(bundle: Path) -> None:
    parity = Parity(0.0, 1.0, 1, (1,), "CPUExecutionProvider", "1", "torch", "2")
    with pytest.raises(BundleError, match="belong together"):
        FileEntry("0" * 64, 1, precision="fp32")
    files = Bundle.open(bundle).manifest.files | {"README.md": describe_file(bundle / "README.md", "fp32", parity)}
    with pytest.raises(BundleError, match=re.escape("files['README.md']: .onnx files, and only they")):
        replace(Bundle.open(bundle).manifest, files=files)
