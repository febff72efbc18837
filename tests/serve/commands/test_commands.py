"""`extract`, `knn`, `linear`, `info`: results, files, messages, exit status. The work itself is tested elsewhere."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from byol.bundle.folder import Bundle
from byol.images.decode import Preprocess
from byol.images.open import open_source
from byol.machine import NO_DRIVER, driver_problem
from byol.serve import KNNClassifier, LinearProbe
from byol.serve.features.read import read_features
from tests.support.command_line import Outcome, byol
from tests.support.small import REPOSITORY
from tests.support.tiny import assert_same_features, tiny_reference, write_images, write_tiny_bundle

TRAIN, TEST = {"cat": 20, "dog": 20, "owl": 10}, {"cat": 6, "dog": 4}
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, other/ (another encoder), train/, test/, flat/ (no labels), features of them."""
    root = tmp_path_factory.mktemp("commands")
    write_tiny_bundle(root / "bundle")
    write_tiny_bundle(root / "other", seed=1)
    write_tiny_bundle(root / "wide", dim=12)
    write_images(root / "train", TRAIN)
    write_images(root / "test", TEST, seed=1)
    write_images(root / "flat", {"": 5})
    write_images(root / "single", {"cat": 3})
    write_images(root / "more", TRAIN | {"emu": 2, "yak": 1})
    for name, source in (
        ("train.parquet", "train"),
        ("test.npz", "test"),
        ("flat.parquet", "flat"),
        ("parts", "train"),
    ):
        assert byol("extract", root / "bundle", root / source, "--out", root / name, *CPU).code == 0
    assert byol("extract", root / "other", root / "test", "--out", root / "other.parquet", *CPU).code == 0
    assert byol("extract", root / "wide", root / "test", "--out", root / "wide.parquet", *CPU).code == 0
    return root


def json_of(done: Outcome) -> dict[str, object]:
    """The one JSON object on stdout; nothing else may be there."""
    assert done.code == 0, done.err
    assert done.out.count("\n") == 1
    values: dict[str, object] = json.loads(done.out)
    return values


def assert_fails(done: Outcome, code: int, *words: str) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ------------------------------------------------------------------------------------------------------- extract


@pytest.mark.parametrize("out", ["f.parquet", "f.npz", "folder", "new.folder/", "deep/er/f.parquet"])
def test_extract_writes_every_row(place: Path, tmp_path: Path, out: str) -> None:
    target = f"{tmp_path}/{out}"
    done = byol("extract", place / "bundle", place / "train", "--out", target, *CPU, "--batch-size", "7", "--json")
    values = json_of(done)
    assert list(values) == ["images", "skipped", "dim", "images_per_second", "device", "out", "variant"]
    assert values | {"images_per_second": 0} == {
        "images": 50, "skipped": 0, "dim": 8, "images_per_second": 0, "device": "cpu", "out": target,
        "variant": "fp32",
    }  # fmt: skip
    read = read_features(target)
    source = open_source(place / "train")
    assert (read.ids, read.labels) == (list(source.ids), list(source.labels))
    assert read.bundle == Bundle.open(place / "bundle").digest
    transform = Preprocess.for_size(16)
    pixels = np.stack([transform(source.open(i)) for i in range(50)])
    assert_same_features(read.x, tiny_reference(place / "bundle", pixels))
    assert not [name for name in below(tmp_path) if "errors" in name or ".tmp" in name]


def test_extract_from_npz_and_from_one_image(place: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(5))
    values = json_of(byol("extract", place / "bundle", tmp_path / "a.npz", "--out", tmp_path / "f.npz", *CPU, "--json"))
    assert values["images"] == 5
    assert read_features(tmp_path / "f.npz").labels == list("01234")
    one = place / "train" / "cat" / "000.png"
    assert byol("extract", place / "bundle", one, "--out", tmp_path / "one.parquet", *CPU).code == 0
    assert read_features(tmp_path / "one.parquet").ids == ["000.png"]


def test_extract_twice_gives_the_same_bytes(place: Path, tmp_path: Path) -> None:
    for name in ("one.parquet", "two.parquet"):
        assert byol("extract", place / "bundle", place / "test", "--out", tmp_path / name, *CPU).code == 0
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_extract_shows_a_table_for_people(place: Path, tmp_path: Path) -> None:
    done = byol("extract", place / "bundle", place / "test", "--out", tmp_path / "f.parquet", "--device", "auto")
    assert "images             10\n" in done.out
    assert done.err.count("\n") == (0 if driver_problem() == NO_DRIVER else 1)


@pytest.mark.parametrize("out", ["f.tsv", "f.pt", "f.parquet.gz"])
def test_extract_refuses_other_formats(place: Path, tmp_path: Path, out: str) -> None:
    done = byol("extract", place / "bundle", place / "test", "--out", tmp_path / out)
    assert_fails(done, 2, "--out", "end in .parquet, .npz or .csv, or in / for a folder")


def test_extract_refuses_a_folder_with_parts_of_another_run(place: Path, tmp_path: Path) -> None:
    (tmp_path / "part-00001.parquet").write_bytes(b"")
    done = byol("extract", place / "bundle", place / "test", "--out", tmp_path, *CPU)
    assert_fails(done, 1, "holds part-00001.parquet of another extraction")
    assert below(tmp_path) == ["part-00001.parquet"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "test", "--out", "f.npz"], ["'BUNDLE'", "does not exist"]),
        (["bundle", "test"], ["Missing option '--out'"]),
        (["bundle", "test", "--out", "f.npz", "--device", "gpu"], ["'gpu' is not one of 'auto', 'cpu', 'cuda'"]),
        (["bundle", "test", "--out", "f.npz", "--batch-size", "0"], ["0 is not in the range 1<=x<=4096"]),
        (["bundle", "-", "--out", "parts/", "--processes", "2"], ["only one process can read standard input"]),
        (["bundle", "test", "--out", "test.npz/"], ["test.npz/ is a file; name a folder"]),
        (["bundle", "test", "--out", "f.npz", "--on-error", "panic"], ["'panic' is not one of 'skip', 'fail'"]),
    ],
)
def test_wrong_extract_commands(
    place: Path, arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert_fails(byol("extract", *arguments), 2, *words)
    assert not (place / "f.npz").exists()


def test_extract_refuses_what_is_no_bundle_or_no_source(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npz"
    assert_fails(byol("extract", place / "test", place / "test", "--out", out), 1, "holds no manifest.json")
    assert_fails(byol("extract", place / "bundle", place / "bundle", "--out", out), 1, "holds no images")
    assert_fails(byol("extract", place / "bundle", place / "test.npz", "--out", out), 1, "no array `images`")
    expected = "does not exist; expected a folder of images, one image, .npz, .tar or .parquet shards, a .txt list,"
    assert_fails(byol("extract", place / "bundle", place / "nothing", "--out", out), 1, expected)
    assert_fails(byol("extract", place / "bundle", place / "nothing", "--out", tmp_path / "d/"), 1, "does not exist")
    assert_fails(byol("extract", place / "bundle", place / "test", "--out", place / "test.npz" / "x.npz"), 2, "--out")
    assert below(tmp_path) == []


# ------------------------------------------------------------------------------------------------- knn and linear

SOURCES = [
    ("train", "test"),
    ("train.parquet", "test.npz"),
    ("parts", "test.npz"),
    ("train", "test.npz"),
    ("train.parquet", "test"),
]


@pytest.mark.parametrize(("train", "test"), SOURCES)
def test_knn_gives_the_same_from_images_and_from_features(place: Path, train: str, test: str) -> None:
    bundle = [place / "bundle"] if place.joinpath(train).suffix + place.joinpath(test).suffix != ".parquet.npz" else []
    done = byol("knn", *bundle, "--train", place / train, "--test", place / test, "--k", "5", *CPU, "--json")
    values = json_of(done)
    assert list(values) == ["top1", "top5", "k", "temperature", "n_train", "n_test", "device", "seconds"]
    a, b = read_features(place / "train.parquet"), read_features(place / "test.npz")
    classifier = KNNClassifier(5, device="cpu").fit(a.x, np.array(a.labels))
    top1, top5 = classifier.top_k_scores(b.x, np.array(b.labels))
    assert values | {"seconds": 0} == {
        "top1": top1, "top5": top5, "k": 5, "temperature": 0.07, "n_train": 50, "n_test": 10,
        "device": "cpu", "seconds": 0,
    }  # fmt: skip
    assert top1 > 0.5
    assert done.err == ""


@pytest.mark.parametrize(("train", "test"), SOURCES[:2])
def test_linear_gives_the_same_from_images_and_from_features(place: Path, train: str, test: str) -> None:
    done = byol("linear", place / "bundle", "--train", place / train, "--test", place / test, *CPU, "--json")
    values = json_of(done)
    assert list(values) == ["top1", "top5", "l2", "n_train", "n_test", "device", "seconds"]
    a, b = read_features(place / "train.parquet"), read_features(place / "test.npz")
    probe = LinearProbe(device="cpu").fit(a.x, np.array(a.labels))
    assert values["l2"] == probe.l2_
    assert [values["top1"], values["top5"]] == probe.top_k_scores(b.x, np.array(b.labels))
    assert done.err == ""


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("failing", ["byol.serve.fuse.save_classifier", "byol.serve.commands.linear._write_confusion"])
def test_what_was_measured_is_shown_where_saving_fails(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, as_json: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(failing, full)
    words = ("--train", place / "train.parquet", "--test", place / "test.npz", "--l2", "0.5", *CPU)
    saved = ("--save-classifier", tmp_path / "new", "--confusion", tmp_path / "c.csv")
    done = byol("linear", place / "bundle", *words, *saved, *(["--json"] if as_json else []))
    assert (done.code, os.strerror(errno.ENOSPC) in done.err) == (1, True)
    assert json.loads(done.out)["top1"] > 0.5 if as_json else done.out.startswith("top1 ")


def test_linear_takes_an_l2_and_shows_percent(place: Path) -> None:
    arguments = ("--train", place / "train.parquet", "--test", place / "test.npz", "--l2", "0.5", *CPU)
    assert json_of(byol("linear", *arguments, "--json"))["l2"] == 0.5
    shown = byol("linear", *arguments)
    assert shown.code == 0
    assert "%\n" in shown.out.splitlines(keepends=True)[0]


def test_top5_of_three_classes_is_top3(place: Path) -> None:
    values = json_of(byol("linear", "--train", place / "train.parquet", "--test", place / "test.npz", *CPU, "--json"))
    assert values["top5"] == 1.0  # a linear probe gives every one of the three classes a probability


def test_bank_smaller_than_k_is_said_and_reported(place: Path) -> None:
    (place / "same.npz").write_bytes((place / "test.npz").read_bytes())
    done = byol("knn", "--train", place / "test.npz", "--test", place / "same.npz", "--k", "99", *CPU, "--json")
    assert json_of(done)["k"] == 10
    assert done.err == "warning: k is 99, but the bank has 10 samples: all of them vote\n"


def test_one_query_of_one_class(place: Path) -> None:
    """A test set may be one image (here in a folder of its class); a class missing from the test set is fine."""
    values = json_of(
        byol("knn", place / "bundle", "--train", place / "train", "--test", place / "single", *CPU, "--json")
    )
    assert values["n_test"] == 3
    assert_fails(
        byol("knn", place / "bundle", "--train", place / "single", "--test", place / "test", *CPU),
        1, "single has only one class (cat), but two or more are needed; pass the parent folder, with one sub-folder",
    )  # fmt: skip


def test_features_that_do_not_say_whose_they_are(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CSV never does: those of another encoder must not become BUNDLE's classifier, and beside others are warned of."""
    for name in ("train", "test"):
        done = byol("extract", place / "other", place / name, "--out", tmp_path / f"{name}.csv", *CPU)
        assert done.code == 0, done.err
    both = ("--train", tmp_path / "train.csv", "--test", tmp_path / "test.csv", *CPU)
    warning = "train.csv does not say which encoder computed it"
    assert warning not in byol("knn", *both).err
    for words in (
        ("knn", place / "bundle", *both),
        ("knn", "--train", tmp_path / "train.csv", "--test", place / "test.npz", *CPU),
        ("neighbors", "--bank", tmp_path / "train.csv", "--query", place / "test.npz", *CPU),
        ("transfer", place / "bundle", f"x={tmp_path / 'train.csv'},{place / 'test.npz'}", *CPU),
    ):
        done = byol(*words)
        assert (done.code, done.err.count(warning)) == (0, 1), (words, done.err)
    monkeypatch.setattr("byol.serve.evaluate.sets.Encoder", lambda *_: pytest.fail("encodes"))
    for test in (tmp_path / "test.csv", place / "test"):
        asked = ("--train", tmp_path / "train.csv", "--test", test, *CPU, "--save-classifier", tmp_path / "new")
        assert_fails(byol("linear", place / "bundle", *asked), 2, "--save-classifier", warning, "give the images")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["knn", "linear"])
@pytest.mark.parametrize(
    ("train", "test", "code", "words"),
    [
        ("train", "test.npz", 2, ["--train", "is not a features file", "byol COMMAND BUNDLE --train SRC --test SRC"]),
        ("train.parquet", "test", 2, ["--test", "is not a features file"]),
        ("train.parquet", "nothing", 1, ["nothing does not exist; expected"]),
        ("train.parquet", "other.parquet", 1, ["extracted with different bundles"]),
        ("train.parquet", "wide.parquet", 1, ["has 8 features per row", "has 12"]),
        ("train.parquet", "flat.parquet", 1, ["5 of 5 rows have no label (first: 000.png)"]),
        ("flat.parquet", "test.npz", 1, ["5 of 5 rows have no label"]),
        ("test.npz", "train.parquet", 1, ["has classes that", "lacks: owl", "training classes: cat, dog"]),
    ],
)
def test_sources_that_do_not_fit(place: Path, command: str, train: str, test: str, code: int, words: list[str]) -> None:
    done = byol(command, "--train", place / train, "--test", place / test, *CPU, "--json")
    assert_fails(done, code, *[word.replace("COMMAND", command) for word in words])


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ("flat", "test", ["5 of 5 images have no label", "sub-folder named after its class"]),
        ("train", "flat", ["5 of 5 images have no label"]),
        ("train", "more", ["lacks: emu, yak"]),
        ("train", "other.parquet", ["extracted with another bundle"]),
    ],
)
def test_image_sources_that_do_not_fit_are_refused_before_encoding(
    place: Path, train: str, test: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("an encoder was made")

    monkeypatch.setattr("byol.serve.evaluate.sets.Encoder", never)
    assert_fails(byol("knn", place / "bundle", "--train", place / train, "--test", place / test), 1, *words)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("knn", "--k", "0"), ("knn", "--k", "many"), ("knn", "--temperature", "0"), ("knn", "--temperature", "nan"),
        ("knn", "--temperature", "inf"), ("linear", "--l2", "-1"), ("linear", "--l2", "nan"), ("linear", "--l2", "x"),
        ("linear", "--label-fraction", "nan"), ("linear", "--confusion", "/nowhere/c.csv"),
    ],
)  # fmt: skip
def test_wrong_numbers_are_wrong_commands(place: Path, command: str, option: str, value: str) -> None:
    sources = ("--train", place / "train.parquet", "--test", place / "test.npz")
    assert_fails(byol(command, *sources, option, value), 2, f"Invalid value for '{option}'")


def test_class_that_cannot_be_read_at_all_is_a_class_that_lacks(place: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 4, "dog": 4})
    (tmp_path / "train" / "owl").mkdir()
    (tmp_path / "train" / "owl" / "bad.png").write_bytes(b"")
    write_images(tmp_path / "test", {"cat": 1, "owl": 1})
    done = byol("knn", place / "bundle", "--train", tmp_path / "train", "--test", tmp_path / "test", *CPU)
    assert_fails(done, 1, "lacks: owl")


# ---------------------------------------------------------------------------------------------------------- info


def test_info_shows_and_verifies(place: Path) -> None:
    values = json_of(byol("info", place / "bundle", "--verify", "--json"))
    assert list(values) == ["bundle", "sha256", "manifest", "verify"]
    assert values["manifest"] == json.loads((place / "bundle" / "manifest.json").read_text())
    assert values["sha256"] == Bundle.open(place / "bundle").digest
    shown = byol("info", place / "bundle", "--verify")
    assert shown.code == 0
    assert "images: uint8 [batch, 16, 16, 3]" in shown.out
    assert shown.out.endswith("yes\n")
    assert "verify" not in byol("info", place / "bundle").out


@pytest.mark.parametrize("as_json", [True, False])
def test_info_verify_fails_on_a_damaged_bundle(tmp_path: Path, as_json: bool) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    content = bytearray((bundle / "encoder.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "encoder.onnx").write_bytes(content)
    done = byol("info", bundle, "--verify", *(["--json"] if as_json else []))
    assert done.code == 1
    assert done.err.startswith("Error: ")
    assert "encoder.onnx does not have the manifest's sha256" in done.err
    if as_json:
        assert json.loads(done.out)["verify"]["ok"] is False
    else:
        assert done.out.endswith("NO\n")
    assert byol("info", bundle).code == 0  # without --verify it only reads the manifest


# ------------------------------------------------------------------------------------------------ real processes


def process(*arguments: str | Path, cwd: Path) -> Outcome:
    root = REPOSITORY
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-X", "importtime", "-m", "byol", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    return Outcome(done.returncode, done.stdout, done.stderr)


def imported(done: Outcome) -> set[str]:
    lines = [line for line in done.err.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().partition(".")[0] for line in lines}


def test_whole_path_in_processes_without_torch(place: Path, tmp_path: Path) -> None:
    runs: list[tuple[str | Path, ...]] = [
        ("extract", "bundle", "train", "--out", tmp_path / "f.parquet", "--json"),
        ("knn", "--train", tmp_path / "f.parquet", "--test", "test.npz", "--json"),
        ("linear", "bundle", "--train", "train", "--test", "test", "--json"),
        ("info", "bundle", "--verify", "--json"),
    ]
    for arguments in runs:
        done = process(*arguments, cwd=place)
        json_of(done)
        assert "torch" not in imported(done)
        assert "onnxruntime" in imported(done)


@pytest.mark.parametrize("arguments", [["--help"], ["knn", "--help"], ["extract", "--help"], ["doctor", "--help"]])
def test_help_is_quick(place: Path, arguments: list[str]) -> None:
    done = process(*arguments, cwd=place)
    assert done.code == 0
    assert "Usage: byol" in done.out
    assert not imported(done) & {"torch", "numpy", "onnxruntime", "onnx", "pyarrow", "scipy", "PIL", "rich"}


def test_exit_status_of_real_processes(place: Path) -> None:
    assert process("extract", "bundle", "test", cwd=place).code == 2
    failed = process("knn", "--train", "train.parquet", "--test", "flat.parquet", cwd=place)
    assert (failed.code, failed.out) == (1, "")
    assert "Traceback" not in failed.err


def test_parquet_of_the_folder_output_has_no_errors_file(place: Path) -> None:
    assert below(place / "parts") == ["_manifest.json", "data", "data/part-00000.parquet"]
    assert pq.read_metadata(place / "parts" / "data" / "part-00000.parquet").num_rows == 50
