"""The recipes for who has nothing of ours make the pixels that we make, of odd photographs too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from byol.bundle.card import model_card
from byol.images.decode import Preprocess
from byol.images.picture.read import read_image
from tests.support.documents import code
from tests.support.inputs.odd_images import encoded, odd_images, odd_photographs, picture, write_files
from tests.support.tiny import tiny_manifest, write_tiny_bundle

SIZE = 16
PHOTOGRAPHS = {
    **{name: content for name, content in odd_images().items() if name.endswith(".jpg") or name == "sixteen.png"},
    **odd_photographs(),
    "dark.tif": encoded(Image.fromarray(picture()[:, :, 0].astype(np.int32)), "TIFF"),
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The pixels that a recipe gives to ONNX Runtime."""
    given: list[np.ndarray] = []

    class Session:
        def __init__(self, path: object) -> None:
            pass

        def run(self, names: list[str], inputs: dict[str, Any]) -> list[np.ndarray]:
            given.append(inputs["images"])
            return [np.zeros((1, 2), np.float32)]

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    return given


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The photographs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return sorted(write_files(tmp_path / "photos", PHOTOGRAPHS).iterdir())


def test_the_tutorial(paths: list[Path], seen: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = code("tutorial.md", "In production")
    spec = {"preprocess": {"resize": 18, "crop": SIZE}, "classifier": {"classes": ["a", "b"]}}
    Path("classifier").mkdir()
    Path("classifier/manifest.json").write_text(json.dumps(spec))
    monkeypatch.setattr(sys, "argv", ["classify.py", *map(str, paths)])
    exec(block, {})
    expected = [Preprocess(18, SIZE)(read_image(path))[None] for path in paths]
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("name", sorted(PHOTOGRAPHS))
def test_the_card(name: str, paths: list[Path], seen: list[np.ndarray], tmp_path: Path) -> None:
    card = model_card(tiny_manifest(write_tiny_bundle(tmp_path / "bundle", SIZE), SIZE, 8))
    block = card.partition("```python\n")[2].partition("```")[0]
    path = next(path for path in paths if path.name == name)
    Path("photo.jpg").symlink_to(path)
    exec(block, {})
    np.testing.assert_array_equal(seen, [Preprocess.for_size(SIZE)(read_image(path))[None]])
