"""The views against independent implementations: Pillow for geometry, torchvision and float64 NumPy for colour."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from PIL import Image

from byol.training.data.augment import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    ViewParams,
    colour_jitter,
    cut_out,
    draw,
    gaussian_blur,
    kernel_size,
    render,
    resize_matrix,
    shift_hue,
)
from byol.training.data.view_config import ViewConfig


def pictures(count, size, seed=0):
    """Smooth random pictures, float32 (count, 3, size, size) in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)


def neutral(count, additive=True):
    """Parameters that change nothing."""
    return ViewParams(
        box=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1),
        flip=torch.zeros(count, dtype=torch.bool),
        amount=torch.tensor([[0.0 if additive else 1.0, 1.0, 1.0, 0.0]]).repeat(count, 1),
        order=torch.arange(4).repeat(count, 1),
        grey=torch.zeros(count, dtype=torch.bool),
        sigma=torch.zeros(count),
        solarize=torch.zeros(count, dtype=torch.bool),
        vertical_flip=torch.zeros(count, dtype=torch.bool),
        cutout=torch.zeros(count, 4),
    )


def changed(params, **values):
    return ViewParams(**{**vars(params), **values})


def as_bytes(images):
    return (images * 255).round().to(torch.uint8)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.1, 0.25, 0.5, 0.7), (0.61, 0.02, 0.33, 0.28)])
@pytest.mark.parametrize("size", [24, 40, 71])
def test_crop_is_pillows_resize_with_box(box, size):
    image = pictures(1, 40)[0]
    left, top, width, height = (40 * value for value in box)
    # Mode F: Pillow computes in floating point, so only its float32 rounding separates the two.
    expected = [
        np.asarray(
            Image.fromarray(channel.numpy()).resize(
                (size, size), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
            )
        )
        for channel in image
    ]
    rows = resize_matrix(torch.tensor([box[1]]), torch.tensor([box[3]]), 40, size)
    columns = resize_matrix(torch.tensor([box[0]]), torch.tensor([box[2]]), 40, size)
    found = (rows[:, None] @ image[None] @ columns[:, None].mT)[0]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-5)


def test_whole_image_at_its_own_size_is_unchanged():
    images = as_bytes(pictures(3, 32))
    view = render(ViewConfig(), images, neutral(3), 32)
    np.testing.assert_allclose(view.numpy() * 255, images.numpy(), atol=0.01)


def test_flip_mirrors_only_the_flagged_images():
    images = as_bytes(pictures(2, 32))
    params = changed(neutral(2), flip=torch.tensor([True, False]))
    view = render(ViewConfig(), images, params, 32) * 255
    np.testing.assert_allclose(view[0].numpy(), images[0].flip(-1).numpy(), atol=0.01)
    np.testing.assert_allclose(view[1].numpy(), images[1].numpy(), atol=0.01)


def test_vertical_flip_turns_only_the_flagged_images_upside_down():
    images = as_bytes(pictures(2, 32))
    params = changed(neutral(2), vertical_flip=torch.tensor([False, True]))
    view = render(ViewConfig(vertical_flip=0.5), images, params, 32) * 255
    np.testing.assert_allclose(view[0].numpy(), images[0].numpy(), atol=0.01)
    np.testing.assert_allclose(view[1].numpy(), images[1].flip(-2).numpy(), atol=0.01)


def test_vertical_flip_leaves_all_other_random_numbers_as_they_were():
    without, with_it = (
        draw(ViewConfig(vertical_flip=p), torch.ones(50), torch.Generator().manual_seed(0)) for p in (0.0, 0.5)
    )
    assert not without.vertical_flip.any()
    for name, values in vars(without).items():
        if name != "vertical_flip":
            assert torch.equal(values, getattr(with_it, name)), name


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions(size, sigma):
    images = pictures(2, size)
    kernel = kernel_size(size)
    found = gaussian_blur(images, torch.tensor([sigma, 0.0]), kernel)
    torch.testing.assert_close(
        found[:1], tvf.gaussian_blur(images[:1], [kernel, kernel], [sigma, sigma]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found[1:], images[1:], atol=1e-6, rtol=0)


def test_blur_kernel_is_a_tenth_of_the_side_made_odd():
    assert [kernel_size(size) for size in (224, 128, 32, 16)] == [23, 13, 3, 3]


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.037, 0.1, 0.5])
def test_hue_is_torchvisions(shift):
    images = pictures(2, 16)
    images[1, :, :4] = 0.3  # grey pixels have no hue
    found = shift_hue(images, torch.tensor([shift, shift]))
    torch.testing.assert_close(found, tvf.adjust_hue(images, shift), atol=2e-6, rtol=0)


def reference_jitter(image, amount, order, additive):
    """Sequential colour jitter of one image in float64, as its definition says: clip after every operation."""
    x = image.double()
    for operation in order:
        value = float(amount[operation])
        if operation == BRIGHTNESS:
            x = x + value if additive else x * value
        elif operation == HUE:
            x = tvf.adjust_hue(x.clamp(0, 1), value)
        else:
            grey = (0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2])[None]
            other = grey.mean() if operation == CONTRAST else grey
            x = value * x + (1 - value) * other
        x = x.clamp(0, 1)
    return x


@pytest.mark.parametrize("additive", [True, False])
def test_jitter_in_every_order_equals_the_sequential_definition(additive):
    orders = torch.tensor(np.array(list(__import__("itertools").permutations(range(4)))))  # (24, 4)
    images = pictures(24, 16)
    generator = torch.Generator().manual_seed(3)
    amount = 1 + 0.4 * (2 * torch.rand(24, 4, generator=generator) - 1)
    amount[:, HUE] = (amount[:, HUE] - 1) / 4
    if additive:
        amount[:, BRIGHTNESS] -= 1
    found = colour_jitter(images, amount, orders, additive)
    expected = torch.stack(
        [reference_jitter(i, a, o.tolist(), additive) for i, a, o in zip(images, amount, orders, strict=True)]
    )
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=5e-6)


@pytest.mark.parametrize(
    ("operation", "function"),
    [(BRIGHTNESS, tvf.adjust_brightness), (CONTRAST, tvf.adjust_contrast), (SATURATION, tvf.adjust_saturation)],
)
def test_multiplicative_blends_are_torchvisions(operation, function):
    images = pictures(1, 16)
    params = neutral(1, additive=False)
    params.amount[0, operation] = 1.37
    found = colour_jitter(images, params.amount, params.order, additive_brightness=False)
    torch.testing.assert_close(found, function(images, 1.37), atol=2e-6, rtol=0)


def test_grey_and_solarize_are_torchvisions_and_in_this_order():
    images = as_bytes(pictures(4, 16))
    params = changed(
        neutral(4),
        grey=torch.tensor([True, False, True, False]),
        solarize=torch.tensor([False, True, True, False]),
    )
    view = render(ViewConfig(solarize=0.5), images, params, 16)
    floats = images.float() / 255
    grey = tvf.rgb_to_grayscale(floats, 3)
    expected = torch.stack([grey[0], tvf.solarize(floats[1], 0.5), tvf.solarize(grey[2], 0.5), floats[3]])
    torch.testing.assert_close(view, expected, atol=2e-3, rtol=0)


def test_drawn_crops_have_the_papers_distribution():
    aspect = torch.full((20_000,), 1.5)
    box = draw(ViewConfig(), aspect, torch.Generator().manual_seed(0)).box
    left, top, width, height = box.unbind(1)
    assert float(torch.minimum(left, top).min()) >= 0
    assert float((left + width).max()) <= 1 + 1e-6
    assert float((top + height).max()) <= 1 + 1e-6
    area, ratio = width * height, 1.5 * width / height
    assert 0.08 <= float(area.min()) < 0.09
    assert float(area.max()) > 0.85
    assert 0.749 < float(ratio.min()) < 0.76
    assert 1.32 < float(ratio.max()) < 1.334
    # torchvision's rejection rule on the same picture, 20,000 crops: mean area and mean log aspect agree.
    import torchvision

    torch.manual_seed(0)
    picture = torch.zeros(3, 200, 300)
    boxes = [
        torchvision.transforms.RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(20_000)
    ]
    expected_area = np.mean([h * w / 60_000 for _, _, h, w in boxes])
    expected_log = np.mean([math.log(w / h) for _, _, h, w in boxes])
    assert float(area.mean()) == pytest.approx(expected_area, abs=0.006)  # 3 standard errors of either mean
    assert float(ratio.log().mean()) == pytest.approx(expected_log, abs=0.005)


def test_an_image_that_no_crop_fits_gets_the_central_one():
    config = ViewConfig(crop_area=(0.9, 1.0))
    box = draw(config, torch.tensor([10.0]), torch.Generator().manual_seed(0)).box[0]
    # 10:1, so the widest legal aspect, 4/3, takes the full height and 4/30 of the width, in the middle.
    assert box.tolist() == pytest.approx([0.5 * (1 - 4 / 30), 0, 4 / 30, 1], abs=1e-5)


def test_probabilities_and_ranges_are_the_configured_ones():
    config = ViewConfig(flip=0.5, jitter=0.8, grey=0.2, blur=0.1, solarize=0.2, vertical_flip=0.3)
    params = draw(config, torch.ones(20_000), torch.Generator().manual_seed(1))
    shares = {
        "flip": params.flip,
        "jitter": (params.amount[:, CONTRAST] != 1),
        "grey": params.grey,
        "blur": params.sigma > 0,
        "solarize": params.solarize,
        "vertical_flip": params.vertical_flip,
    }
    for name, flags in shares.items():
        p = getattr(config, name)
        assert float(flags.float().mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 20_000)), name
    sigma = params.sigma[params.sigma > 0]
    assert float(sigma.min()) >= 0.1
    assert float(sigma.max()) <= 2.0
    assert float((params.amount[:, BRIGHTNESS]).abs().max()) <= 0.4
    assert float((params.amount[:, SATURATION] - 1).abs().max()) <= 0.2 + 1e-6
    first = params.order[:, 0].bincount(minlength=4) / 20_000  # every operation comes first equally often
    assert first.tolist() == pytest.approx([0.25] * 4, abs=0.015)


def test_every_image_of_a_batch_gets_its_own_view_and_the_seed_decides():
    images = as_bytes(pictures(1, 32)).repeat(4, 1, 1, 1)
    views = [
        render(ViewConfig(), images, draw(ViewConfig(), torch.ones(4), torch.Generator().manual_seed(seed)), 32)
        for seed in (5, 5, 6)
    ]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert all(not torch.allclose(views[0][0], views[0][i]) for i in (1, 2, 3))


def test_a_cutout_covers_its_share_of_the_view_with_the_mean_and_nothing_else():
    config, generator = ViewConfig(cutout=(0.2, 0.4)), torch.Generator().manual_seed(0)
    views = torch.rand(500, 3, 32, 32) + 1
    params = draw(config, torch.linspace(0.5, 2, 500), generator)
    covered = cut_out(views, params.cutout)
    hidden = covered == 0
    assert torch.equal(covered[~hidden], views[~hidden])
    assert (hidden == hidden[:, :1]).all()  # in all channels
    share = hidden[:, 0].float().mean(dim=(1, 2))
    assert 0.15 < share.min() < 0.25
    assert 0.35 < share.max() < 0.45
    for mask in hidden[:, 0]:  # a rectangle
        assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0)[None])
    assert hidden[:, 0].any(dim=0).float().mean() > 0.99  # anywhere


def test_a_cutout_changes_no_other_random_number():
    plain, covered = (
        draw(config, torch.ones(4), torch.Generator().manual_seed(0))
        for config in (ViewConfig(), ViewConfig(cutout=(0.1, 0.2)))
    )
    assert not plain.cutout.any()
    for name, value in vars(plain).items():
        assert name == "cutout" or torch.equal(value, getattr(covered, name)), name
