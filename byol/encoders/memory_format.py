"""The order of activations in memory: channels last, but for a ResNet's last maps on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from byol.training.model import BYOL

SMALL_MAP = 16  # positions; from 2x2 up to here oneDNN's convolutions are up to a third faster with channels first


def use_channels_last(model: BYOL, image_size: int) -> None:
    """Keep activations of both networks in NHWC order, those of small last maps on a CPU in NCHW order."""
    model.to(memory_format=torch.channels_last)
    for encoder in (model.online.encoder, model.target.encoder):
        encoder_channels_last(encoder, image_size)


def encoder_channels_last(encoder: nn.Module, image_size: int) -> None:
    """The same for one encoder."""
    encoder.to(memory_format=torch.channels_last)
    stage = getattr(encoder, "layer4", None)  # ResNets of torchvision and timm
    on_cpu = next(encoder.parameters()).device.type == "cpu"
    if on_cpu and isinstance(stage, nn.Module) and 1 < _positions(encoder, stage, image_size) <= SMALL_MAP:
        stage.to(memory_format=torch.contiguous_format)
        stage.register_forward_pre_hook(_channels_first)


def _channels_first(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)


@torch.no_grad()
def _positions(encoder: nn.Module, stage: nn.Module, image_size: int) -> int:
    """Positions of the stage's output map."""
    seen: list[int] = []
    hook = stage.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0, 0].numel()))
    encoder.eval()
    try:
        encoder(torch.zeros(1, 3, image_size, image_size))
    finally:
        hook.remove()
        encoder.train()
    return seen[0]
