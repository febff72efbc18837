"""What `knn`, `linear` and `neighbors` can do beyond one number: sweeps, few labels, classes, nearest images."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from byol.images.grid import APART, GAP, LINE, SIDE
from byol.images.splits import draw
from byol.serve import KNNClassifier, LinearProbe
from byol.serve.evaluate.few_labels import few_label_accuracy
from byol.serve.features.read import Features, read_features
from byol.serve.features.write import feature_file
from tests.support.command_line import byol
from tests.support.tiny import write_images, write_tiny_bundle

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, train/ and test/ (unbalanced), their features."""
    root = tmp_path_factory.mktemp("protocols")
    write_tiny_bundle(root / "bundle")
    write_images(root / "train", {"cat": 20, "dog": 20, "owl": 10})
    write_images(root / "test", {"cat": 6, "dog": 4, "owl": 1}, seed=1)
    for name in ("train", "test"):
        assert byol("extract", root / "bundle", root / name, "--out", root / f"{name}.parquet", *CPU).code == 0
    return root


def sets(place: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    train, test = (read_features(place / f"{name}.parquet") for name in ("train", "test"))
    return train.x, np.array(train.labels, np.str_), test.x, np.array(test.labels, np.str_)


def on_features(command: str, place: Path, *words: object) -> object:
    done = byol(command, "--train", place / "train.parquet", "--test", place / "test.parquet", *CPU, "--json", *words)
    assert done.code == 0, done.err
    return json.loads(done.out)


# ----------------------------------------------------------------------------------------------------------- knn


def test_knn_gives_every_k_and_temperature_in_one_pass(place: Path) -> None:
    words = ("--k", 1, "--k", 5, "--temperature", 0.07, "--temperature", 1)
    values = on_features("knn", place, *words)
    assert isinstance(values, dict)
    x, y, z, truth = sets(place)
    assert [(r["k"], r["temperature"]) for r in values["results"]] == [(1, 0.07), (1, 1.0), (5, 0.07), (5, 1.0)]
    for result in values["results"]:
        classifier = KNNClassifier(result["k"], result["temperature"], "cpu").fit(x, y)
        assert [result["top1"], result["top5"]] == classifier.top_k_scores(z, truth)
    assert {k: values[k] for k in ("k", "temperature", "top1", "top5")} == values["results"][0]
    shown = byol("knn", "--train", place / "train.parquet", "--test", place / "test.parquet", *CPU, *words)
    assert shown.out.count("\n") == 4


# -------------------------------------------------------------------------------------------------------- linear


def test_accuracy_per_class_and_confusion_against_scikit_learn(place: Path, tmp_path: Path) -> None:
    values = on_features("linear", place, "--l2", 0.01, "--per-class", "--confusion", tmp_path / "c.csv")
    assert isinstance(values, dict)
    x, y, z, truth = sets(place)
    probe = LinearProbe(0.01, "cpu").fit(x, y)
    expected = confusion_matrix(truth, probe.predict(z), labels=["cat", "dog", "owl"])
    with open(tmp_path / "c.csv", newline="") as stream:
        header, *rows = list(csv.reader(stream))
    assert header == ["class", "cat", "dog", "owl"]
    assert [row[0] for row in rows] == ["cat", "dog", "owl"]
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], int), expected)
    shares = expected.diagonal() / expected.sum(1)
    assert values["per_class"] == pytest.approx(dict(zip(["cat", "dog", "owl"], shares, strict=True)))
    assert values["mean_per_class"] == pytest.approx(shares.mean())
    assert values["top1"] == pytest.approx(expected.diagonal().sum() / expected.sum())


def test_classes_that_the_test_set_lacks_have_no_accuracy(place: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "cats", {"cat": 3}, seed=2)
    done = byol(
        *("linear", place / "bundle", "--train", place / "train", "--test", tmp_path / "cats", *CPU),
        *("--l2", 1, "--per-class", "--json"),
    )
    assert list(json.loads(done.out)["per_class"]) == ["cat"]


def test_few_labels_from_the_command_line(place: Path) -> None:
    words = ("--labels-per-class", 2, "--label-fraction", 0.1, "--draws", 3, "--l2", 0.1)
    values = on_features("linear", place, *words)
    assert isinstance(values, dict)
    x, y, z, truth = sets(place)
    for row, amount, images in zip(values["few_labels"], (2, 0.1), (6, 5), strict=True):
        rows = [draw(y, amount, seed) for seed in range(3)]
        top1 = [LinearProbe(0.1, "cpu").fit(x[r], y[r]).score(z, truth) for r in rows]
        assert (row["images"], row["draws"]) == (images, 3)
        assert row["top1"] == pytest.approx(top1)
        assert row["mean"] == pytest.approx(np.mean(top1))
        assert row["deviation"] == pytest.approx(np.std(top1, ddof=1))
    done = byol("linear", "--train", place / "train.parquet", "--test", place / "test.parquet", *CPU, *words)
    assert "2 a class (6 labelled images): " in done.out
    assert "0.1 of each class (5 labelled images): " in done.out


def test_too_few_images_for_few_labels(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol.serve.commands.linear.fit", None)  # said before the work
    monkeypatch.setattr("byol.serve.evaluate.sets.collect", None)
    for suffix in (".parquet", ""):
        words = ("--train", f"{place}/train{suffix}", "--test", f"{place}/test{suffix}", "--labels-per-class", 11)
        done = byol("linear", place / "bundle", *words, *CPU)
        assert (done.code, "class owl has 10 images, fewer than the 11 asked for" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("amount", "counts"), [(1, [1, 1]), (3, [3, 3]), (0.5, [10, 5]), (0.01, [1, 1]), (1.0, [20, 10])]
)
def test_draws_are_stratified_distinct_and_repeatable(amount: float, counts: list[int]) -> None:
    labels = np.array(["a"] * 20 + ["b"] * 10)
    rows = draw(labels, amount, seed=1)
    assert [int((labels[rows] == name).sum()) for name in "ab"] == counts
    assert len(set(rows.tolist())) == len(rows)
    np.testing.assert_array_equal(rows, draw(labels, amount, seed=1))
    assert amount == 1.0 or sorted(rows.tolist()) != sorted(draw(labels, amount, seed=2).tolist())


def test_one_draw_has_no_deviation() -> None:
    x, y = np.eye(4, dtype=np.float32), np.array(list("aabb"))
    few = few_label_accuracy(lambda: KNNClassifier(1, device="cpu"), (x, y), (x, y), 1, 1)
    assert (few.images, few.deviation, len(few.top1)) == (2, 0.0, 1)


# ----------------------------------------------------------------------------------------------------- neighbors


def grid_size(columns: int, rows: int, words: int = 2) -> tuple[int, int]:
    """Of a picture with a title and so many lines of words beneath each tile."""
    return GAP + columns * (SIDE + GAP) + APART, GAP + 2 * LINE + rows * (SIDE + 2 * GAP + words * LINE)


def test_neighbors_lists_the_nearest_and_draws_them(place: Path, tmp_path: Path) -> None:
    words = ("--bank", place / "train", "--query", place / "test", "--k", 3, *CPU)
    done = byol("neighbors", place / "bundle", *words, "--grid", tmp_path / "g.png", "--json")
    assert done.code == 0, done.err
    found = [json.loads(line) for line in done.out.splitlines()]
    x, y, z, _ = sets(place)
    bank, queries = read_features(place / "train.parquet"), read_features(place / "test.parquet")
    similarity, rows = KNNClassifier(3, device="cpu").fit(x, y).kneighbors(z)
    assert [f["id"] for f in found] == queries.ids
    assert [[n["id"] for n in f["neighbours"]] for f in found] == [[bank.ids[i] for i in row] for row in rows]
    values = [[n["similarity"] for n in f["neighbours"]] for f in found]
    np.testing.assert_allclose(values, similarity, atol=1e-5)
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.size == grid_size(4, 11)
    words = ("--bank", place / "train.parquet", "--query", place / "test.parquet", "--k", 3, *CPU)
    again = byol("neighbors", *words, "--json")
    assert [json.loads(line)["id"] for line in again.out.splitlines()] == queries.ids
    assert byol("neighbors", *words).out.count("\n") == 11


def test_queries_of_standard_input_are_drawn(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"{path}\n" for path in sorted((place / "test").rglob("*.png"))[:2])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    words = ("--bank", place / "train", "--query", "-", "--k", 3, *CPU)
    done = byol("neighbors", place / "bundle", *words, "--grid", tmp_path / "g.png", "--json")
    assert (done.code, done.out.count("\n")) == (0, 2), done.err
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.size == grid_size(4, 2)


def test_a_grid_is_a_sample_and_stands_for_the_list(place: Path, tmp_path: Path) -> None:
    words = ("--bank", place / "train", "--query", place / "test", "--k", 3, "--grid-rows", 4, *CPU)
    done = byol("neighbors", place / "bundle", *words, "--grid", tmp_path / "g.png")
    assert done.code == 0, done.err
    assert done.out.split() == ["grid", str(tmp_path / "g.png"), "rows", "4", "of", "11", "queries"]
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.size == grid_size(4, 4)


def test_a_query_can_be_left_out_of_its_own_neighbours(place: Path, tmp_path: Path) -> None:
    """Also where another image is as near as itself: the id decides, not the similarity."""
    bank = place / "train.parquet"
    words = ("neighbors", "--bank", bank, "--query", bank, "--k", 3, *CPU, "--json")
    with_self, without = (
        [json.loads(line) for line in byol(*words, *more).out.splitlines()] for more in ((), ("--exclude-self",))
    )
    assert any(found["id"] in [n["id"] for n in found["neighbours"]] for found in with_self)
    for before, after in zip(with_self, without, strict=True):
        kept = [n for n in before["neighbours"] if n["id"] != before["id"]]
        assert after["neighbours"][: len(kept)] == kept
        assert len(after["neighbours"]) == 3
        assert before["id"] not in [n["id"] for n in after["neighbours"]]
    other = feature_copy(read_features(bank), tmp_path / "other.parquet")
    done = byol("neighbors", "--bank", bank, "--query", other, "--exclude-self", *CPU)
    assert (done.code, "no query's id is in --bank" in done.err) == (2, True)


def feature_copy(features: Features, path: Path) -> Path:
    """The same features under other ids."""
    with feature_file(path, features.x.shape[1], str(features.bundle)) as write:
        write([f"other-{i}" for i in range(len(features))], features.labels, features.x)
    return path


def test_neighbors_needs_what_it_works_on(place: Path, tmp_path: Path) -> None:
    images = ("--bank", place / "train", "--query", place / "test", *CPU)
    done = byol("neighbors", *images)
    assert (done.code, "name the BUNDLE" in done.err) == (2, True)
    files = ("--bank", place / "train.parquet", "--query", place / "test", *CPU)
    done = byol("neighbors", place / "bundle", *files, "--grid", tmp_path / "g.png")
    assert (done.code, "--grid draws images" in done.err) == (2, True)
    done = byol("neighbors", place / "bundle", *images, "--grid", tmp_path / "none" / "g.png")
    assert (done.code, "none is not a writable folder" in done.err) == (2, True)
