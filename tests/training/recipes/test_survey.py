"""What a few images tell of a set."""

import numpy as np
import pytest
from PIL import Image

from byol.images.open import open_source
from byol.training.recipes import survey as module
from byol.training.recipes.survey import survey
from tests.support.small import folder


def test_size_and_colour_are_seen(tmp_path):
    found = survey(open_source(folder(tmp_path / "colour", per_class=6)))
    assert (found.images, found.side, found.grey) == (12, 16, False)


def test_large_photographs_are_decoded_small(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for i, size in enumerate([(2048, 1536), (1600, 2400), (255, 300)]):
        Image.new("RGB", size, (200, 90, 30)).save(tmp_path / "photos" / f"{i}.jpg")
    seen, look = [], module._look

    def watched(image):
        seen.append(image.size)
        return look(image)

    monkeypatch.setattr(module, "_look", watched)
    found = survey(open_source(tmp_path / "photos"))
    assert sorted(seen) == [(255, 300), (400, 600), (512, 384)]
    assert (found.side, found.grey) == (384, False)


def test_grey_pictures_are_grey_also_as_rgb_jpeg(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 30, 40), np.uint8)
    (tmp_path / "grey").mkdir()
    for i, one in enumerate(pixels):
        Image.fromarray(one).convert("RGB" if i % 2 else "L").save(tmp_path / "grey" / f"{i}.jpg")
    found = survey(open_source(tmp_path / "grey"))
    assert found.grey
    assert found.mean == pytest.approx(0.5, abs=0.02)
    assert found.std == pytest.approx(1 / 12**0.5, abs=0.02)  # of uniform noise


def test_where_nothing_can_be_read_a_preset_must_be_named(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of 1 images looked at can be read.*--preset"):
        survey(open_source(tmp_path / "broken"))
