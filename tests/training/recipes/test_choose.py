"""The recipe for a set of images: what is taken, by hand-written cases."""

import pytest

from byol.training.recipes.choose import choose
from byol.training.recipes.presets import PRESETS
from byol.training.recipes.survey import Survey


def found(images, side, grey=False):
    return Survey(images, side, grey, 0.3004, 0.3499)


@pytest.mark.parametrize(
    ("images", "side", "device", "preset", "size", "batch", "epochs"),
    [
        (900, 400, "cpu", "photos-cpu-1k", 64, 64, 222),
        (4_710, 160, "cpu", "photos-cpu-10k", 64, 64, 85),
        (50_000, 32, "cpu", "photos-cpu-100k", 48, 64, 20),
        (1_300_000, 500, "cpu", "photos-cpu-100k", 64, 64, 10),
        (1_000, 224, "cuda", "photos-gpu-1k", 128, 128, 800),
        (9_469, 320, "cuda", "photos-gpu-10k", 128, 256, 422),
        (1_300_000, 500, "cuda", "photos-gpu-100k", 160, 512, 10),
        (1_297, 8, "cpu", "photos-cpu-1k", 24, 64, 154),
        (40, 300, "cpu", "photos-cpu-1k", 64, 8, 1000),
        (3, 300, "cpu", "photos-cpu-1k", 64, 2, 1000),
    ],
)
def test_number_size_and_device_choose(images, side, device, preset, size, batch, epochs):
    recipe = choose(found(images, side), device)
    config = recipe.config
    assert (config.preset, config.image_size, config.batch_size, config.epochs) == (preset, size, batch, epochs)
    assert config.batch_size <= images
    assert preset in recipe.reasons[0]
    assert f"{images:,} images" in recipe.reasons[0]


def test_pictures_without_colour_keep_their_brightness_and_small_ones_their_direction():
    digits = choose(found(1_297, 8, grey=True), "cpu").config
    assert digits.mean == (0.3, 0.3, 0.3)
    assert digits.std == (0.35, 0.35, 0.35)
    for view in (digits.view1, digits.view2):
        assert (view.saturation, view.hue, view.grey, view.blur, view.flip) == (0, 0, 0, 0, 0)
    scans = choose(found(1_297, 512, grey=True), "cpu").config
    assert (scans.view1.flip, scans.view1.saturation, scans.view1.blur) == (0.5, 0, 0.5)


def test_photographs_keep_the_presets_views():
    preset, recipe = PRESETS["photos-cpu-10k"](), choose(found(10_000, 300), "cpu")
    assert recipe.config == preset


def test_a_small_gpu_gets_smaller_micro_batches():
    large, small = (choose(found(100_000, 500), "cuda", memory).config for memory in (80e9, 8e9))
    assert (large.accumulate, small.accumulate) == (2, 8)
