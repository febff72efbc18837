"""`--baselines`: raw pixels and the untrained encoder beside the one measured, on the very same images."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from byol.bundle.folder import Bundle
from byol.serve import KNNClassifier, LinearProbe
from byol.serve.commands.comparison import note_better
from byol.serve.evaluate import baselines
from byol.serve.evaluate.baselines import pixel_features
from byol.signals import Stopped
from tests.support.command_line import byol
from tests.support.tiny import write_tiny_bundle

CPU = ("--device", "cpu")
SIZE = 16  # of the tiny bundle
COMPARED = ["pixels", "untrained"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/ and other/ (another encoder), train/ and test/ (unbalanced, each with an unreadable image)."""
    root = tmp_path_factory.mktemp("baselines")
    write_tiny_bundle(root / "bundle")
    write_tiny_bundle(root / "other", seed=5)
    write_images(root / "train", {"cat": 12, "dog": 12, "owl": 6}, 0)
    write_images(root / "test", {"cat": 5, "dog": 4, "owl": 2}, 1)
    for part in ("train", "test"):
        (root / part / "dog" / "torn.png").write_bytes(b"no image")
    return root


def write_images(root: Path, classes: dict[str, int], seed: int) -> None:
    """Coarse noise under a faint tint of the class: nothing tells all of them apart."""
    generator = np.random.default_rng(seed)
    for number, (label, count) in enumerate(classes.items()):
        (root / label).mkdir(parents=True)
        for n in range(count):
            pixels = generator.integers(0, 200, (6, 5, 3))
            pixels[..., number] += 40
            coarse = Image.fromarray(pixels.astype(np.uint8))
            coarse.resize((20, 24), Image.Resampling.NEAREST).save(root / label / f"{n:03}.png")


@pytest.fixture
def exported(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The other process writes what other/ holds; its command lines."""
    asked: list[tuple[str, ...]] = []

    def run_command(*words: str) -> str:
        asked.append(words)
        write_tiny_bundle(Path(words[-1]), seed=5)
        return ""

    monkeypatch.setattr(baselines, "run_command", run_command)
    monkeypatch.setattr(baselines, "LIBRARIES", ("tests",))
    return asked


def by_hand(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the bundle decodes of a folder's readable images, as rows 0 to 1; their classes."""
    rows, labels = [], []
    for path in sorted(folder.rglob("[0-9]*.png")):
        with Image.open(path) as image:
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            rows.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)).ravel() / 255.0)
        labels.append(path.parent.name)
    return np.array(rows), np.array(labels)


def measured(command: str, place: Path, *words: object) -> Any:
    sets = ("--train", place / "train", "--test", place / "test")
    done = byol(command, place / "bundle", *sets, *words, "--json", *CPU)
    assert done.code == 0, done.err
    return json.loads(done.out)


# -------------------------------------------------------------------------------------------------------- pixels


def test_pixels_are_the_decoded_image_where_it_is_small() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found = pixel_features(images, 8)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, images.reshape(3, 192).astype(np.float32) / np.float32(255))


def test_larger_images_are_reduced_with_antialiasing() -> None:
    """A ramp stays one: each pixel is the mean of the two it stands for, the ends apart."""
    ramp = np.broadcast_to(np.arange(0, 192, 3, dtype=np.uint8)[None, :, None], (64, 64, 3))
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200  # of which sampling without antialiasing would see one colour
    found = (255 * pixel_features(np.stack([ramp, stripes]), 32)).reshape(2, 32, 32, 3)
    np.testing.assert_allclose(found[0, 5, 2:-2, 1], 6 * np.arange(2, 30) + 1.5, atol=0.6)
    np.testing.assert_allclose(found[1, :, 2:-2], 100, atol=12)


def test_the_rows_of_pixels_are_those_of_other_implementations(place: Path) -> None:
    (x, y), (z, truth) = by_hand(place / "train"), by_hand(place / "test")

    def weight(distance: np.ndarray) -> np.ndarray:
        votes: np.ndarray = np.exp((1 - distance) / 0.2)
        return votes

    reference = KNeighborsClassifier(3, metric="cosine", weights=weight, algorithm="brute").fit(x, y)
    knn = measured("knn", place, "--k", 3, "--temperature", 0.2, "--baselines")
    assert len({knn["top1"], reference.score(z, truth), 1.0}) == 3
    assert knn["baselines"]["pixels"]["top1"] == pytest.approx(reference.score(z, truth))
    assert (knn["n_train"], knn["n_test"]) == (len(x), len(z)) == (30, 11)
    linear = measured("linear", place, "--baselines", "--per-class", "--labels-per-class", 2, "--draws", 2)
    probe = LinearProbe(device="cpu").fit(x, y)
    row = linear["baselines"]["pixels"]
    assert row["l2"] == probe.l2_
    assert row["top1"] == pytest.approx(probe.score(z, truth))
    assert row["mean_per_class"] == pytest.approx(
        np.mean([(probe.predict(z) == truth)[truth == c].mean() for c in set(y)])
    )
    assert [few["draws"] for few in row["few_labels"]] == [2]


# ------------------------------------------------------------------------------------------ the untrained encoder


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_the_untrained_row_is_what_that_bundle_measures_alone(
    place: Path, exported: list[tuple[str, ...]], command: str
) -> None:
    found = measured(command, place, "--baselines")
    plain = measured(command, place)
    sets = ("--train", place / "train", "--test", place / "test")
    alone = json.loads(byol(command, place / "other", *sets, "--json", *CPU).out)
    assert sorted(found["baselines"]) == COMPARED
    row = found["baselines"]["untrained"]
    assert row == pytest.approx({key: alone[key] for key in row})
    same = plain.keys() - {"seconds"}
    assert {key: found[key] for key in same} == pytest.approx({key: plain[key] for key in same})
    assert found.keys() - plain.keys() == {"baselines", "chance", "standard_error"}
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["standard_error"] == pytest.approx((found["top1"] * (1 - found["top1"]) / 11) ** 0.5)
    (words,) = exported
    assert words[:4] == ("export", str(place / "bundle"), "--untrained", "--out")
    assert not Path(words[4]).parent.exists()


def test_every_setting_of_a_sweep_has_its_baselines(place: Path, exported: object) -> None:
    words = ("--k", 1, "--k", 3, "--temperature", 0.1, "--baselines")
    found = measured("knn", place, *words)
    (x, y), (z, truth) = by_hand(place / "train"), by_hand(place / "test")
    for row in found["baselines"]["pixels"]["results"]:
        classifier = KNNClassifier(row["k"], row["temperature"], "cpu").fit(x, y)
        assert [row["top1"], row["top5"]] == pytest.approx(classifier.top_k_scores(z, truth))
    sets = ("--train", place / "train", "--test", place / "test")
    done = byol("knn", place / "bundle", *sets, *words, *CPU)
    *lines, chance, error = done.out.splitlines()
    rows = [found["baselines"][name]["results"] for name in ("untrained", "pixels")]
    for line, own, untrained, pixels in zip(lines, found["results"], *rows, strict=True):
        for name, row in (("untrained", untrained), ("pixels", pixels)):
            assert f"  {name} {row['top1']:.2%} ({100 * (row['top1'] - own['top1']):+.2f})" in line
            ahead = f" % against {100 * own['top1']:.2f} % top-1 at k {own['k']}, temperature 0.1"
            assert (f"{100 * row['top1']:.2f}{ahead}" in done.err) == (row["top1"] > own["top1"])
    assert chance == "chance 33.33%"
    assert error.startswith("standard error of the encoder's top-1: at most ")


def test_people_get_aligned_rows_with_differences(place: Path, exported: object) -> None:
    sets = ("--train", place / "train", "--test", place / "test")
    for command in ("knn", "linear"):
        found = measured(command, place, "--baselines")
        done = byol(command, place / "bundle", *sets, "--baselines", *CPU)
        lines = done.out.splitlines()
        start = next(i for i, line in enumerate(lines) if line.split() == ["top-1", "top-5", "difference"])
        own, untrained, pixels, chance, error = lines[start + 1 : start + 6]
        assert own.split() == ["this", "encoder", f"{found['top1']:.2%}", f"{found['top5']:.2%}"]
        assert len(untrained) == len(pixels) == len(lines[start])
        for line, name in ((untrained, "untrained"), (pixels, "pixels")):
            assert line.split()[-1] == f"{100 * (found['baselines'][name]['top1'] - found['top1']):+.2f}"
        assert chance.split() == ["chance", "33.33%"]
        assert error.endswith(f"{100 * found['standard_error']:.2f} points (11 test images)")
        assert not any(name in done.out for name in ("baselines", "standard_error"))


def test_transfer_has_two_more_rows_for_each_data_set(place: Path, exported: list[tuple[str, ...]]) -> None:
    data = [f"{name}={place / 'train'},{place / 'test'}" for name in ("a", "b")]
    found = json.loads(byol("transfer", place / "bundle", *data, "--baselines", "--json", *CPU).out)["results"]
    assert len(exported) == 1  # one untrained encoder serves all
    linear, knn = measured("linear", place, "--baselines"), measured("knn", place, "--baselines")
    for result in found:
        for name in COMPARED:
            assert result["baselines"][name]["linear"]["top1"] == pytest.approx(linear["baselines"][name]["top1"])
            assert result["baselines"][name]["knn"]["top1"] == pytest.approx(knn["baselines"][name]["top1"])
    lines = byol("transfer", place / "bundle", data[0], "--baselines", *CPU).out.splitlines()
    assert [line[:20].strip() for line in lines] == ["data set", "a", "untrained encoder", "raw pixels"]
    assert len(lines[2]) == len(lines[3]) == len(lines[0])
    for line, name in zip(lines[2:], ("untrained", "pixels"), strict=True):
        other = found[0]["baselines"][name]
        shares = [f"{100 * other[kind][key]:.2f}" for kind in ("linear", "knn") for key in ("top1", "mean_per_class")]
        points = [f"{100 * (other[kind]['top1'] - found[0][kind]['top1']):+.2f}" for kind in ("linear", "knn")]
        assert line.split()[2:] == [*shares, *points]


# ----------------------------------------------------------------------------------------------- what is left out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "its architecture is of 'tests', which byol cannot build; expected torchvision, timm"),
        ({"LIBRARIES": ("tests",), "run_command": lambda *_: "the disk is full"}, "the disk is full"),
    ],
)
def test_without_the_untrained_encoder_one_line_says_why(
    place: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], line: str
) -> None:
    for name, value in changes.items():
        monkeypatch.setattr(baselines, name, value)
    sets = ("--train", place / "train", "--test", place / "test")
    done = byol("knn", place / "bundle", *sets, "--baselines", "--json", *CPU)
    assert done.code == 0
    assert list(json.loads(done.out)["baselines"]) == ["pixels"]
    assert f"\nthe untrained encoder is left out: {line}\n" in f"\n{done.err}"


@pytest.mark.parametrize(
    ("libraries", "line"),
    [
        ((), "its architecture is of 'tests'"),
        (("tests",), "there is no place to build it: no usable folder; set TMPDIR"),
    ],
)
def test_it_is_left_out_where_there_is_no_temporary_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, libraries: tuple[str, ...], line: str
) -> None:
    def no_folder(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "no usable folder")

    found = importlib.util.find_spec
    monkeypatch.setattr(baselines, "LIBRARIES", libraries)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "torch" or found(name, *rest))
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", no_folder)
        compared, lacks = baselines.open_compared(place / "bundle", "cpu")
    assert lacks.startswith(line)
    assert list(compared.columns) == ["encoder", "pixels"]


def test_what_is_stopped_leaves_no_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []

    def stopped(*words: str) -> str:
        folders.append(Path(words[-1]).parent)
        assert folders[0].is_dir()
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(baselines, "LIBRARIES", ("tests",))
    monkeypatch.setattr(baselines, "run_command", stopped)
    done = byol("knn", place / "bundle", "--train", place / "train", "--test", place / "test", "--baselines", *CPU)
    assert (done.code, done.err.splitlines()[-1]) == (1, "Error: stopped by SIGTERM")
    assert not folders[0].exists()


def test_without_torch_the_line_says_what_to_install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "LIBRARIES", ("tests",))
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest))
    why = baselines._why_not_untrained(Bundle.open(place / "bundle"))
    assert why == "building it needs torch, which is not installed; in a checkout of byol, run: pip install '.[train]'"


def test_features_files_are_refused_and_say_what_to_give(place: Path, tmp_path: Path) -> None:
    features = tmp_path / "f.parquet"
    assert byol("extract", place / "bundle", place / "train", "--out", features, *CPU).code == 0
    both = ("--train", features, "--test", features)
    for words in (
        ("knn", place / "bundle", *both),
        ("linear", place / "bundle", "--train", place / "train", "--test", features),
        ("transfer", place / "bundle", f"x={place / 'train'},{features}"),
        ("report", place / "bundle", *both, "--out", tmp_path / "r.html"),
    ):
        done = byol(*words, "--baselines", *CPU)
        assert done.code == 2
        assert f"--baselines needs a BUNDLE and the images themselves, not their features; {features} holds" in done.err
    done = byol("knn", *both, "--baselines", *CPU)
    assert (done.code, f"not their features; {features} holds features" in done.err) == (2, True), done.err
    done = byol("knn", "--train", place / "train", "--test", place / "test", "--baselines", *CPU)
    assert (done.code, "not their features; there is no BUNDLE" in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("top1", "own", "line"),
    [
        (0.5, 0.5, ""),
        (0.4, 0.5, ""),
        (0.7, 0.5, "raw pixels score higher than this encoder: 70.00 % against 50.00 % top-1\n"),
        (
            0.59,  # two standard errors of 0.5 with 100 images are 0.1
            0.5,
            "raw pixels score higher than this encoder: 59.00 % against 50.00 % top-1 (with 100 test images this may "
            "be chance)\n",
        ),
    ],
)
def test_a_baseline_that_is_ahead_is_named(
    top1: float, own: float, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    note_better({"pixels": {"top1": top1}}, own, 100)
    assert capsys.readouterr().err == line


# -------------------------------------------------------------------------------------------------- where it shows


def test_a_saved_classifier_carries_them_to_the_card(place: Path, tmp_path: Path, exported: object) -> None:
    found = measured("linear", place, "--baselines", "--save-classifier", tmp_path / "new")
    head = Bundle.open(tmp_path / "new").manifest.classifier
    assert head is not None
    assert head.baselines == {name: found["baselines"][name]["top1"] for name in COMPARED}
    untrained, pixels = (found["baselines"][name]["top1"] for name in ("untrained", "pixels"))
    card = (tmp_path / "new" / "README.md").read_text()
    assert f"; by the same probe: untrained encoder {untrained:.2%}, raw pixels {pixels:.2%}." in card
    measured("linear", place, "--save-classifier", tmp_path / "plain")
    assert "baselines" not in (tmp_path / "plain" / "manifest.json").read_text()
    assert "untrained" not in (tmp_path / "plain" / "README.md").read_text()


def test_the_report_has_their_rows(place: Path, tmp_path: Path, exported: object) -> None:

    found = {command: measured(command, place, "--baselines") for command in ("knn", "linear")}
    sets = ("--train", place / "train", "--test", place / "test", "--out", tmp_path / "r.html", *CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("byol.serve.report.measure.LABELS_PER_CLASS", (1,))
        done = byol("report", place / "bundle", *sets, "--baselines")
    assert done.code == 0, done.err
    html = re.sub(r"<(script|style)\b.*?</\1>", " ", (tmp_path / "r.html").read_text(), flags=re.DOTALL)
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    for title, name in (("untrained encoder", "untrained"), ("raw pixels", "pixels")):
        knn, linear = (100 * found[command]["baselines"][name]["top1"] for command in ("knn", "linear"))
        assert re.search(rf"{title} {knn:.1f} {linear:.1f} \d+\.\d \u00b1 \d+\.\d", shown)
    assert "chance 33.3 33.3 \u2013" in shown


def test_one_labelled_folder_is_its_own_bank_and_no_image_its_own_neighbour(place: Path, exported: Any) -> None:
    words = ("knn", place / "bundle", "--train", place / "train", "--k", 3, *CPU, "--json")
    alone = byol(*words, "--baselines")
    assert alone.code == 0, alone.err
    assert "leave one out: each of the 30 images is compared with all the others" in alone.err
    found = json.loads(alone.out)
    assert (found["n_train"], found["n_test"], found["k"]) == (30, 30, 3)
    assert alone.err.count("torn.png") == 1
    probe = byol("linear", place / "bundle", "--train", place / "train", "--test", place / "train", *CPU, "--json")
    assert (
        "is both --train and --test: an accuracy on images that were learned from says nothing about others"
        in probe.err
    )
    same = byol(*words, "--test", place / "test" / ".." / "train")  # by another name
    assert json.loads(same.out)["top1"] == found["top1"] < 1
    few = byol("knn", place / "bundle", "--train", place / "train", "--k", 500, *CPU, "--json")
    assert json.loads(few.out)["k"] == 29
    assert 0 <= found["baselines"]["pixels"]["top1"] < 1
