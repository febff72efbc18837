"""The recipes of docs/after.md, run as they stand there with the real packages, on features with a planted truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from byol.serve import Encoder, read_features
from byol.serve.features.thumbnails import thumbnail
from byol.serve.features.write import feature_file
from tests.support.documents import code
from tests.support.inputs.odd_images import encoded, picture
from tests.support.tiny import write_tiny_bundle

CLASSES, EACH, DIM = ("ant", "bee", "cat"), 40, 8
ROWS = len(CLASSES) * EACH
DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with features/: three well separated classes, in parts, with pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "features", clouds(0), [CLASSES[i // EACH] for i in range(ROWS)])
    return tmp_path


def clouds(seed: int, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = 4 * np.eye(DIM)[: len(CLASSES)] + shift
    rows: np.ndarray = (np.repeat(centres, EACH, axis=0) + random.normal(size=(ROWS, DIM))).astype(np.float32)
    return rows


def write(folder: Path, x: np.ndarray, labels: list[str]) -> None:
    (folder / "data").mkdir(parents=True)
    square = np.zeros((8, 8, 3), np.uint8)
    for number, rows in enumerate(np.array_split(np.arange(len(x)), 3)):
        with feature_file(folder / "data" / f"part-{number:05d}.parquet", DIM, DIGEST, thumbnails=True) as put:
            names = [f"{labels[row]}/{row:03d}.png" for row in rows]
            put(names, [labels[row] for row in rows], x[rows], [thumbnail(square, 8)] * len(rows))


def run(blocks: list[str]) -> dict[str, Any]:
    (block,) = blocks
    found: dict[str, Any] = {}
    exec(block, found)
    return found


def test_find_images_like_this_one(here: Path) -> None:
    pytest.importorskip("usearch")
    bundle = write_tiny_bundle(here / "bundle", dim=DIM)
    images = [picture(16, 16, seed) for seed in range(30)]
    features = Encoder(bundle, "cpu")(images)
    (here / "features").rename(here / "others")
    write(here / "features", features, ["any"] * len(images))
    (here / "photo.jpg").write_bytes(encoded(Image.fromarray(images[17]), "PNG"))
    nearest = run(code("after.md", "Find images like this one"))["nearest"]
    assert nearest[0][0] == "any/017.png"
    assert nearest[0][1] == pytest.approx(1, abs=1e-3)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert {name for name, _ in nearest} == {f"any/{row:03d}.png" for row in np.argsort(-unit @ unit[17])[:5]}


def test_find_labels_that_are_wrong(here: Path) -> None:
    pytest.importorskip("cleanlab")
    labels = [CLASSES[i // EACH] for i in range(ROWS)]
    wrong = {3: "cat", 47: "ant", 90: "bee"}
    for row, label in wrong.items():
        labels[row] = label
    (here / "features").rename(here / "others")
    write(here / "features", clouds(0), labels)
    listed = run(code("after.md", "Find labels that are wrong"))["listed"]
    assert {(name, given, like) for name, given, like in listed[:3]} == {
        (f"{label}/{row:03d}.png", label, CLASSES[row // EACH]) for row, label in wrong.items()
    }


def test_choose_what_to_label() -> None:
    found = run(code("after.md", "Choose what to label"))
    assert len(set(found["chosen"])) == 8
    assert {name.partition("/")[0] for name in found["chosen"]} == set(CLASSES)
    assert set(found["chosen"]) <= set(read_features("features").ids)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.35, 0.65), (3.0, 0.95, 1.0)])
def test_notice_that_the_pictures_have_changed(here: Path, shift: float, low: float, high: float) -> None:
    write(here / "today", clouds(1, shift), ["new"] * ROWS)
    assert low <= run(code("after.md", "Notice that the pictures have changed"))["drift"] <= high


def test_see_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    found = run(code("after.md", "See them"))
    assert (len(found["table"]), found["picture"].size) == (ROWS, (8, 8))
