"""`views.png`: what belongs together stands together, under a word, pixel by pixel or reduced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from byol.training.watch.views_picture import APART, GAP, LINE, PAD, SIDE, originals, pictures, save_views

COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def flat(side, count, colour):
    return [Image.new("RGB", (side, side), colour) for _ in range(count)]


@pytest.mark.parametrize(("sides", "cell"), [((224, 224, 224), 128), ((8, 24, 24), 128), ((64, 48, 48), 128)])
def test_an_image_and_its_views_are_one_group(tmp_path, sides, cell):
    words = ("image", "view 1", "view 2")
    save_views(
        tmp_path / "v.png",
        [(word, flat(side, 16, c)) for word, side, c in zip(words, sides, COLOURS, strict=True)],
    )
    with Image.open(tmp_path / "v.png") as shown:
        width = 2 * PAD + 3 * cell + 2 * GAP
        assert shown.width == APART + 4 * (width + APART)  # four groups in a row
        pixels = np.asarray(shown)
    top = APART + PAD + LINE + cell // 2
    for group in range(4):
        for place, colour in enumerate(COLOURS):
            x = APART + group * (width + APART) + PAD + place * (cell + GAP) + cell // 2
            assert tuple(pixels[top, x]) == colour
    words_row = pixels[APART + PAD : APART + PAD + LINE, APART : APART + width]
    assert (words_row < 100).any()  # letters, darker than the panel


def test_more_kinds_of_views_and_few_images_have_room(tmp_path):
    """Later configurations have small views beside the two large ones."""
    columns = [("image", flat(96, 3, COLOURS[0]))]
    columns += [(f"view {i}", flat(48, 3, COLOURS[i % 3])) for i in range(1, 9)]
    save_views(tmp_path / "v.png", columns)
    with Image.open(tmp_path / "v.png") as shown:
        assert shown.height > 3 * 96  # one group below the other


def test_a_pixel_of_a_tiny_view_is_a_square(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    save_views(tmp_path / "v.png", [("image", [Image.fromarray(pixels)])])
    with Image.open(tmp_path / "v.png") as shown:
        left, top = APART + PAD, APART + PAD + LINE
        cut = np.asarray(shown)[top : top + SIDE, left : left + SIDE]
    np.testing.assert_array_equal(cut, pixels.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1))


def test_views_and_canvases_become_pictures():
    views = torch.tensor([0.0, 0.5, 1.2]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert pictures(views)[0].getpixel((0, 0)) == (0, 128, 255)
    canvases = torch.zeros(3, 6, 6, 3, dtype=torch.uint8)
    sizes = [image.size for image in originals(canvases, torch.tensor([1.0, 2.0, 0.5]))]
    assert sizes == [(6, 6), (6, 3), (3, 6)]  # the proportions of the files
