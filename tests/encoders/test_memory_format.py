"""Small last maps have their channels first on a CPU; it changes speed and nothing else."""

from functools import partial

import pytest
import torch

from byol.encoders import activations
from byol.training.model import BYOL, use_channels_last
from tests.support.small import RESNET18, config


def note(seen, name, _module, inputs):
    seen[name] = inputs[0]


def channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@pytest.mark.parametrize(
    ("size", "small"), [(8, False), (16, True), (32, True), (40, False)]
)  # maps of 1x1, 2x2, 4x4, 5x5
def test_the_last_stage_is_channels_first_where_its_map_is_small(size, small):
    model = BYOL(config(**RESNET18, image_size=size, canvas_size=size))
    use_channels_last(model, size)
    for network in (model.online, model.target):
        seen: dict[str, torch.Tensor] = {}
        for name in ("layer3", "layer4"):
            stage = getattr(network.encoder, name)
            assert channels_last(stage[0].conv1.weight) == (name == "layer3" or not small)
            stage[1].conv1.register_forward_pre_hook(partial(note, seen, name))
        network.encoder(torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last))
        assert channels_last(seen["layer3"])
        assert seen["layer4"].is_contiguous() == (small or size == 8)  # a single position has both orders


def test_features_and_gradients_stay_the_same(monkeypatch):
    torch.manual_seed(0)
    one, other = BYOL(config(**RESNET18)), BYOL(config(**RESNET18))
    other.load_state_dict(one.state_dict())
    use_channels_last(one, 16)
    monkeypatch.setattr(activations, "SMALL_MAP", 0)
    use_channels_last(other, 16)
    views = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    for model in (one, other):
        model(*views)[0].backward()
    for a, b in zip(one.trained_parameters().values(), other.trained_parameters().values(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-4)
