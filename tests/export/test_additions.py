"""Further graphs of a bundle: fewer bits, pictures of any size, a classifier. Made, proven, used, refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byol.bundle.folder import Bundle
from byol.bundle.measured import Head
from byol.bundle.parity import compare_features
from byol.export import additions, precision
from byol.export.additions import CALIBRATION, Additions
from byol.export.exporter import export_bundle
from byol.images.decode import Preprocess, decode
from byol.images.open import open_source
from byol.serve import Encoder, LinearProbe
from byol.serve.features.read import read_features
from byol.serve.proof import verify
from tests.support.command_line import byol
from tests.support.documents import DOCS
from tests.support.small import folder
from tests.support.tiny import write_tiny_bundle

INT8, FP16, ANY_SIZE = "encoder.int8.onnx", "encoder.fp16.onnx", "encoder.any-size.onnx"


def session(bundle, name):
    return onnxruntime.InferenceSession(bundle / name)


def test_every_graph_is_there_proven_and_listed(place):
    manifest = Bundle.open(place / "bundle").manifest
    assert manifest.graphs == [ANY_SIZE, FP16, INT8, "encoder.onnx"]
    assert verify(place / "bundle").ok
    written = json.loads(manifest.to_json())
    parity = {name: written["files"][name]["parity"] for name in manifest.graphs}
    assert parity[FP16]["reference"] == parity[INT8]["reference"] == "encoder.onnx"
    assert parity[ANY_SIZE]["reference"] == "Pillow and encoder.onnx"
    assert parity[FP16]["min_cosine"] > 0.9999
    assert parity[INT8]["images"] == 6  # every fifth of 32 is held out
    assert parity[ANY_SIZE]["images"] == len(additions.SHAPES) + 16
    assert written["evaluation"]["top1"].keys() == {"encoder.onnx", FP16, INT8}
    said = (place / "said").read_text()
    assert all(f"verified: {name}: " in said for name in manifest.graphs)
    card = (place / "bundle" / "README.md").read_text()
    assert "kNN (k 20, temperature 0.07): 16 images of `test`, bank of 32 of `train`." in card
    assert all(f"| `{name}` |" in card for name in manifest.graphs)


def test_the_evaluation_is_what_the_commands_measure(place, tmp_path):
    top1 = json.loads((place / "bundle" / "manifest.json").read_text())["evaluation"]["top1"]
    words = ("--train", place / "train", "--test", place / "test", "--json")
    assert json.loads(byol("knn", place / "bundle", *words).out)["top1"] == top1["encoder.onnx"]
    for part in ("train", "test"):
        out = tmp_path / f"{part}.parquet"
        done = byol("extract", place / "bundle", place / part, "--out", out, "--variant", "int8", "--json")
        assert json.loads(done.out)["variant"] == "int8"
        assert str(read_features(out).bundle).endswith(f"/{INT8}")
    words = ("--train", tmp_path / "train.parquet", "--test", tmp_path / "test.parquet", "--json")
    assert json.loads(byol("knn", *words).out)["top1"] == top1[INT8]
    mixed = byol("knn", place / "bundle", "--train", tmp_path / "train.parquet", "--test", place / "test")
    assert (mixed.code, f"was extracted with {INT8} of this bundle" in mixed.err) == (1, True)


def test_bits_are_really_fewer(place):
    bundle = place / "bundle"
    kinds = {item.data_type for item in onnx.load(bundle / FP16).graph.initializer if np.prod(item.dims) > 100}
    assert kinds == {onnx.TensorProto.FLOAT16}
    ops = [node.op_type for node in onnx.load(bundle / INT8).graph.node]
    assert ops.count("QuantizeLinear") >= ops.count("Conv") == 20
    weights = [i for i in onnx.load(bundle / INT8).graph.initializer if len(i.dims) == 4]
    assert {item.data_type for item in weights} == {onnx.TensorProto.INT8}
    largest = max(np.abs(onnx.numpy_helper.to_array(item).astype(int)).max() for item in weights)
    assert 2 * 255 * largest < 2**15  # what a CPU without VNNI adds in 16 bits
    assert largest == 64
    size = {name: (bundle / name).stat().st_size for name in ("encoder.onnx", FP16, INT8)}
    assert size[INT8] < 0.3 * size["encoder.onnx"]
    assert size[FP16] < 0.55 * size["encoder.onnx"]


def test_any_size_takes_a_decoded_picture_and_nothing_else(place):
    path = next((place / "test" / "cat").iterdir())
    graph = session(place / "bundle", ANY_SIZE)
    features = graph.run(["features"], {"images": np.asarray(Image.open(path))[None]})[0]
    assert compare_features(Encoder(place / "bundle", "cpu")([path]), features)[1] > 0.999


def test_auto_takes_what_suits_the_cpu_and_says_so(place, tmp_path, monkeypatch):
    for fast, variant in ((True, "int8"), (False, "fp32")):
        monkeypatch.setattr("byol.serve.encoder.fast_int8", lambda fast=fast: fast)
        for device in ("cpu", "auto"):
            words = ("--out", tmp_path / "f.npz", "--variant", "auto", "--device", device)
            done = byol("extract", place / "bundle", place / "test", *words)
            assert (done.code, f"variant: {variant}" in done.err) == (0, True)


def test_exporting_again_gives_the_same_bytes(place, tmp_path):
    again = Additions(("fp16", "int8"), True, place / "train", place / "train", place / "test")
    export_bundle(place / "run", tmp_path / "again", again)
    for path in (place / "bundle").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_variant_that_is_not_there_is_named(quick, tmp_path):
    done = byol("extract", quick / "bundle", quick / "test", "--out", tmp_path / "f.npz", "--variant", "int8")
    assert (done.code, "holds fp32; export it again with --precision int8" in done.err) == (1, True)
    with pytest.raises(ValueError, match="variant is 'fp8'; expected auto, fp32, fp16, int8, bf16"):
        Encoder(quick / "bundle", "cpu", variant="fp8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--precision", "int8"],
            f"int8 needs calibration images; add --calibrate IMAGES ({CALIBRATION} typical ones)",
        ),
        (["--eval-train", "."], "--eval-train and --eval-test go together"),
        (["--precision", "fp16", "--calibrate", "."], "--calibrate needs --precision int8 or --any-size"),
        (["--arch", "resnet18", "--mean", "0.5", "nan", "0.5"], "nan is not a finite number"),
        (["--arch", "resnet18", "--mean", "123.7", "116.3", "103.5"], "123.7 is not in the range"),
        (["--arch", "resnet18", "--std", "0", "1", "1"], "0.0 is not in the range"),
        (["--arch", "resnet18", "--image-size", "100000"], "100000 is not in the range"),
        (
            ["--image-size", "96"],
            "--std are for weights of another toolkit; leave them out for {run}, which byol wrote",
        ),
        (["--arch", "resnet18"], "--from, --prefix, --arch, --image-size, --mean and --std are for"),
    ],
)
def test_what_does_not_go_together_is_a_wrong_command(place, tmp_path, words, message):
    done = byol("export", place / "run", "--out", tmp_path / "b", *words)
    assert (done.code, message.replace("{run}", str(place / "run")) in done.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--calibrate", "nothing", "--precision", "int8"], "nothing does not exist"),
        (["--eval-train", "test", "--eval-test", "./test"], "--eval-train and --eval-test are the same images"),
        (["--eval-train", "nothing", "--eval-test", "nothing"], "nothing does not exist"),
        (
            ["--eval-train", "test", "--eval-test", "{features}"],
            "f.npz holds features; give --eval-train and --eval-test",
        ),
        (["--calibrate", "test/cat", "--precision", "int8"], "8 readable images; calibration needs at least 20"),
        (["--eval-train", "test", "--eval-test", "test/cat"], "8 of 8 images have no label"),
    ],
)
def test_images_that_will_not_do_are_refused_before_the_work(place, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(place)
    monkeypatch.setattr("byol.export.exporter.encoder_to_onnx", None)  # calling it would be the work
    np.savez(tmp_path / "f.npz", features=np.eye(4, dtype=np.float32), labels=[0, 0, 1, 1])
    words = [word.format(features=tmp_path / "f.npz") for word in words]
    done = byol("export", place / "run", "--out", tmp_path / "b", *words)
    assert (done.code, message in done.err) == (1, True), done.err


def test_where_no_classifier_can_be_saved_nothing_is_computed(place, tmp_path, monkeypatch):
    monkeypatch.setattr("byol.serve.commands.linear.load", None)
    (tmp_path / "mine").touch()
    words = ("--train", place / "train", "--test", place / "test", "--save-classifier", tmp_path)
    done = byol("linear", place / "bundle", *words)
    assert (done.code, "exists and is not a bundle" in done.err) == (2, True), done.err


def test_the_page_says_how_many_images_calibrate():
    assert f"come from {CALIBRATION} images;" in (DOCS / "export.md").read_text()


def test_too_few_readable_calibration_images_are_refused_and_nothing_is_written(quick, tmp_path):
    images = folder(tmp_path / "images", per_class=11)
    for path in sorted(images.rglob("*.png"))[::4]:
        path.write_bytes(b"no picture")
    done = byol("export", quick / "run", "--out", tmp_path / "b", "--precision", "int8", "--calibrate", images)
    assert (done.code, "has 16 readable images; calibration needs at least 20" in done.err) == (1, True)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("wanted", "module", "maker"),
    [
        (Additions(("fp16",)), additions, "fp16_graph"),
        (Additions(any_size=True), additions, "any_size_graph"),
    ],
)
def test_a_graph_beyond_its_gate_is_refused(monkeypatch, tmp_path, wanted, module, maker):
    other, own = (onnx.load(write_tiny_bundle(tmp_path / str(seed), seed=seed) / "encoder.onnx") for seed in (0, 1))
    real = getattr(module, maker)
    monkeypatch.setattr(module, maker, lambda _encoder, *rest: real(other, *rest))
    images = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\.onnx is refused: it does not reproduce .*encoder\.onnx: .*cosine"):
        additions.derive(own, Preprocess.for_size(16), images, wanted)


def test_int8_beyond_its_gate_is_refused(quick, tmp_path, monkeypatch):
    ranges = np.zeros((32, 16, 16, 3), np.uint8)  # calibrated on black pictures
    monkeypatch.setattr(additions, "int8_graph", lambda encoder, _: precision.int8_graph(encoder, ranges))
    with pytest.raises(ValueError, match=f"{INT8} is refused"):
        export_bundle(quick / "run", tmp_path / "b", Additions(("int8",), calibrate=quick / "train"))
    assert not (tmp_path / "b").exists()


# ------------------------------------------------------------------------------------------------ classifier


def test_the_classifier_scores_what_linear_reported(place, classified, tmp_path):
    assert classified["classifier"] == str(place / "with")
    done = byol("classify", place / "with", place / "test", "--out", tmp_path / "out.parquet", "--json")
    assert json.loads(done.out)["images"] == 16
    table = pq.read_table(tmp_path / "out.parquet")
    assert json.loads(table.schema.metadata[b"classes"]) == ["cat", "dog"]
    rows = table.to_pylist()
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == classified["top1"]
    for row in rows:
        assert row["id"].startswith(row["label"])
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == max(row["probabilities"])
    done = byol("classify", place / "with", place / "test", "--out", tmp_path / "out.csv")
    assert done.code == 0
    with open(tmp_path / "out.csv") as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == [row["predicted"] for row in rows]


def test_the_new_bundle_holds_all_of_the_old_one(place, classified):
    old, new = (Bundle.open(place / name).manifest for name in ("bundle", "with"))
    changed = {"README.md", "golden.safetensors"}
    assert {n: e for n, e in old.files.items() if n not in changed}.items() <= new.files.items()
    head = new.classifier
    assert head == Head(("cat", "dog"), classified["l2"], "train", 32, "test", 16, classified["top1"])
    report = verify(place / "with")
    assert report.ok
    assert report.golden["classifier.onnx"]["max_relative_error"] < 1e-4
    properties = session(place / "with", "classifier.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == ["cat", "dog"]
    assert "2 classes" in (place / "with" / "README.md").read_text()


def test_a_classifier_can_be_saved_into_its_own_bundle_and_replaced(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    for classes in (("a", "b"), ("a", "b", "c")):
        data = folder(tmp_path / "-".join(classes), classes, per_class=6)
        done = byol("linear", bundle, "--train", data, "--test", data, "--save-classifier", bundle)
        assert done.code == 0, done.err
        head = Bundle.open(bundle).manifest.classifier
        assert head is not None
        assert head.classes == classes
        assert verify(bundle).ok


def test_classify_needs_a_classifier_and_linear_a_bundle(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    data = folder(tmp_path / "data", per_class=4)
    done = byol("classify", bundle, data, "--out", tmp_path / "o.csv")
    assert (done.code, "holds no classifier.onnx; create one: byol linear" in done.err) == (1, True)
    assert not (tmp_path / "o.csv").exists()
    byol("extract", bundle, data, "--out", tmp_path / "f.parquet")
    words = ("--train", tmp_path / "f.parquet", "--test", tmp_path / "f.parquet", "--save-classifier", tmp_path / "n")
    assert byol("linear", *words).code == 2
    assert byol("linear", bundle, *words).code == 0  # features of this bundle will do
    done = byol("classify", bundle, data, "--out", tmp_path / "o.txt")
    assert (done.code, "end in .parquet or .csv" in done.err) == (2, True)


def test_a_bad_image_is_left_out_of_the_classification_and_listed(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    data = folder(tmp_path / "data", per_class=6)
    byol("linear", bundle, "--train", data, "--test", data, "--save-classifier", bundle)
    (data / "cat" / "002.png").write_bytes(b"no picture")
    done = byol("classify", bundle, data, "--out", tmp_path / "o.parquet")
    assert (done.code, "skipped 1" in done.err) == (0, True)
    ids = pq.read_table(tmp_path / "o.parquet").column("id").to_pylist()
    assert ids == [f"{c}/{i:03d}.png" for c in ("cat", "dog") for i in range(6) if (c, i) != ("cat", 2)]
    assert pq.read_table(tmp_path / "o.parquet.errors.parquet").column("path").to_pylist() == ["cat/002.png"]
    before = (tmp_path / "o.parquet").read_bytes()
    done = byol("classify", bundle, data, "--out", tmp_path / "o.parquet", "--on-error", "fail")
    assert done.code == 1
    assert (tmp_path / "o.parquet").read_bytes() == before


def test_a_probe_of_another_encoder_is_refused(tmp_path):
    from byol.serve.fuse import save_classifier

    bundle = write_tiny_bundle(tmp_path / "bundle")
    probe = LinearProbe(l2=1.0, device="cpu").fit(np.random.default_rng(0).normal(size=(10, 5)), [0, 1] * 5)
    head = Head(("0", "1"), 1.0, "x", 10, "x", 10, 1.0)
    with pytest.raises(ValueError, match=r"fitted on 5 features, .* has 8"):
        save_classifier(bundle, probe, head, tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a bundle"):
        save_classifier(bundle, probe, head, tmp_path / "taken")


def test_calibration_holds_squares_and_few_originals(tmp_path, monkeypatch):
    """Pictures of 12 megapixels take 48 MB each in Pillow, and up to 320 are read ahead by all threads."""
    images, real, held = folder(tmp_path / "images", per_class=20), decode, set()

    def watched(*words, **named):
        for index, result in real(*words, **named):
            assert isinstance(result, np.ndarray)
            held.add(result.shape)
            yield index, result

    monkeypatch.setattr(additions, "decode", watched)
    assert additions._read_calibration(images, Preprocess(16, 16), whole=False).pictures == []
    found, source = additions._read_calibration(images, Preprocess(16, 16), whole=True), open_source(images)
    assert held == {(16, 16, 3)}
    assert len(found.pictures) == 16
    for row, picture in zip(range(0, 32, 2), found.pictures, strict=True):
        np.testing.assert_array_equal(picture, source.open(row))


def test_unreadable_images_for_calibration_and_evaluation_are_named(tmp_path, capfd):
    write_tiny_bundle(tmp_path / "bundle")
    for name in ("train", "test"):
        folder(tmp_path / name, per_class=12)
        a_class = next(path for path in (tmp_path / name).iterdir() if path.is_dir())
        (a_class / f"{name}.png").write_bytes(b"no picture")
    additions._read_calibration(tmp_path / "train", Preprocess(16, 16), whole=False)
    said = capfd.readouterr().err
    assert "skipped 1 of the calibration images:" in said
    assert "train.png: not an image" in said
    additions.evaluate_variants(tmp_path / "bundle", tmp_path / "train", tmp_path / "test")
    said = capfd.readouterr().err
    assert said.count("skipped 1 of --eval-train:") == said.count("skipped 1 of --eval-test:") == 1
    assert "train.png: not an image" in said
    assert "test.png: not an image" in said
