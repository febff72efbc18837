"""A strided convolution of a single position is one of stride 1, in bfloat16 on a CPU, where torch has it wrong."""

import pytest
import torch
from torch import nn

from byol.encoders.build import build_encoder
from byol.encoders.strides import step_by_one
from byol.images.open import open_source
from byol.training.data.decoded import load_canvases
from byol.training.trainer import Trainer
from tests.support.small import config, folder


def fill_memory_with_nan():
    """What is allocated next holds what lay there before."""
    for size in range(8, 22):
        torch.full((1 << size,), float("nan"))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (3, 32), (5, 1)])
def test_gradients_of_a_single_position(layout, kernel, groups):
    """Against float32, to the 8 bits of bfloat16; without the remedy most of these are wrong or not finite."""
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 64, kernel, stride=2, padding=kernel // 2, groups=groups).to(memory_format=layout)
    images = torch.randn(8, 32, 1, 1).to(memory_format=layout)
    conv(images).square().sum().backward()
    assert conv.weight.grad is not None
    expected = conv.weight.grad.clone()
    step_by_one(conv)
    for _ in range(5):
        conv.weight.grad = None
        fill_memory_with_nan()
        with torch.autocast("cpu", torch.bfloat16):
            loss = conv(images).float().square().sum()
        loss.backward()
        found: torch.Tensor | None = conv.weight.grad
        assert found is not None
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_maps_of_more_positions_keep_their_stride():
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", "imagenet").eval()
    images = {size: torch.randn(2, 3, size, size) for size in (16, 64, 16)}
    before = {size: encoder(batch) for size, batch in images.items()}
    step_by_one(encoder)
    for size in (16, 64, 16):
        torch.testing.assert_close(encoder(images[size]), before[size])


def test_a_large_encoder_learns_from_small_pictures_in_bfloat16(tmp_path):
    images = load_canvases(open_source(folder(tmp_path / "images")), 16)
    trainer = Trainer(config(stem="imagenet", precision="bf16"), images)
    for step in range(2):
        fill_memory_with_nan()
        trainer.step(step)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
