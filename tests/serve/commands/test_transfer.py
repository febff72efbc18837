"""`byol transfer`: what it measures is what `linear` and `knn` measure, and it checks everything first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from byol.serve import KNNClassifier, LinearProbe
from byol.serve.features.read import read_features
from tests.support.command_line import byol
from tests.support.tiny import write_images, write_tiny_bundle

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, and two data sets: pets/ with train and test, birds/ with train and val."""
    root = tmp_path_factory.mktemp("transfer")
    write_tiny_bundle(root / "bundle")
    write_images(root / "pets" / "train", {"cat": 20, "dog": 20, "rat": 10})
    write_images(root / "pets" / "test", {"cat": 7, "dog": 4, "rat": 1}, seed=1)
    write_images(root / "birds" / "train", {"owl": 8, "tit": 9})
    write_images(root / "birds" / "val", {"owl": 3, "tit": 2}, seed=1)
    return root


def test_it_measures_what_linear_and_knn_do(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "birds", tmp_path / "birds")
    pets = f"animals={place / 'pets' / 'train'},{place / 'pets' / 'test'}"
    done = byol("transfer", place / "bundle", pets, tmp_path / "birds", "--k", 3, "--json", *CPU)
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["results"]
    assert [(r["name"], r["n_train"], r["n_test"], r["classes"]) for r in (first, second)] == [
        *[("animals", 50, 12, 3), ("birds", 17, 5, 2)],
    ]
    sets = [place / "pets" / part for part in ("train", "test")]
    for found, train, test in ((first, *sets), (second, tmp_path / "birds" / "train", tmp_path / "birds" / "val")):
        words = ("--train", train, "--test", test, "--json", *CPU)
        linear = json.loads(byol("linear", place / "bundle", *words, "--per-class").out)
        knn = json.loads(byol("knn", place / "bundle", *words, "--k", 3).out)
        for key in ("top1", "top5", "mean_per_class", "l2"):
            assert found["linear"][key] == pytest.approx(linear[key])
        for key in ("top1", "top5", "k", "temperature"):
            assert found["knn"][key] == pytest.approx(knn[key])
    parts = {}
    for part, path in zip(("train", "test"), sets, strict=True):
        byol("extract", place / "bundle", path, "--out", tmp_path / f"{part}.parquet", *CPU)
        parts[part] = read_features(tmp_path / f"{part}.parquet")
    truth = np.array(parts["test"].labels)
    for kind, model in (("linear", LinearProbe(device="cpu")), ("knn", KNNClassifier(3, device="cpu"))):
        predicted = model.fit(parts["train"].x, np.array(parts["train"].labels)).predict(parts["test"].x)
        assert first[kind]["mean_per_class"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    table = byol("transfer", place / "bundle", pets, "--k", 3, *CPU).out.splitlines()
    assert table[0].split() == [
        "data",
        "set",
        "train",
        "test",
        "classes",
        "linear",
        "per",
        "class",
        "kNN",
        "per",
        "class",
    ]
    shares = [first[kind][key] for kind in ("linear", "knn") for key in ("top1", "mean_per_class")]
    assert table[1].split() == ["animals", "50", "12", "3", *(f"{100 * share:.2f}" for share in shares)]


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        ("nowhere", 2, "nowhere is neither a folder with train/ and test/ or val/, nor a named data set"),
        ("x=a", 2, "'x=a' is not NAME=TRAIN,TEST"),
        ("x=,b", 2, "'x=,b' is not NAME=TRAIN,TEST"),
        ("x=pets/train,nowhere", 1, "nowhere does not exist"),
        ("x=pets/train,birds/val", 1, "birds/val has classes that pets/train lacks: owl, tit"),
        ("pets", 2, "two data sets are called 'pets'"),
        ("cifar10", 1, "cifar10 is not on this machine yet"),
    ],
)
def test_one_bad_data_set_is_an_error_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, data: str, code: int, message: str
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("byol.serve.evaluate.sets.Encoder", lambda *_: pytest.fail("encodes"))
    done = byol("transfer", "bundle", "pets", data, *CPU)
    assert (done.code, message in done.err) == (code, True), done.err


def test_skipped_images_are_listed_for_each_set(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "birds", tmp_path / "birds")
    for part, name in (("train", "odd"), ("val", "torn")):
        (tmp_path / "birds" / part / "owl" / f"{name}.png").write_bytes(b"no image")
    sets = ("--train", tmp_path / "birds" / "train", "--test", tmp_path / "birds" / "val")
    for command, words, train, test in (
        ("knn", sets, "--train", "--test"),
        ("linear", (*sets, "--l2", 1), "--train", "--test"),
        ("transfer", (tmp_path / "birds",), "birds (train)", "birds (test)"),
    ):
        done = byol(command, place / "bundle", *words, *CPU)
        assert f"skipped 1 of {train}:\n  owl/odd.png: " in done.err
        assert f"skipped 1 of {test}:\n  owl/torn.png: " in done.err


def test_what_fails_later_does_not_lose_what_is_finished(place: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(place / "pets" / part, tmp_path / "torn" / part)
    for path in (tmp_path / "torn" / "train" / "rat").iterdir():
        path.write_bytes(b"no image")
    data = (place / "pets", tmp_path / "torn", place / "birds")
    done = byol("transfer", place / "bundle", *data, "--k", 3, *CPU)
    assert done.code == 1
    assert [line.split()[0] for line in done.out.splitlines()] == ["data", "pets", "birds"]
    assert "torn: " in done.err
    assert "lacks: rat" in done.err
    assert "10 images could not be read (first: rat/000.png: " in done.err
    assert done.err.endswith("Error: 1 of 3 data sets failed: torn\n")
    found = json.loads(byol("transfer", place / "bundle", *data, "--k", 3, "--json", *CPU).out)
    assert [result["name"] for result in found["results"]] == ["pets", "birds"]
    assert list(found["failed"]) == ["torn"]
