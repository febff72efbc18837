"""A workaround for a torch bug on CPUs: strided convolutions of a 1x1 map, in bfloat16.

In torch 2.14 and 2.15 the gradient of their weights is uninitialised memory (seen with oneDNN on an AMD CPU). Encoders
for large pictures have such maps when trained on small ones: a ResNet with the ImageNet stem at 16 px.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


def step_by_one(encoder: nn.Module) -> None:
    """Let centred convolutions with odd kernels step by 1 where their map is 1x1, which gives the same output."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1) and _is_centred(module):
            height, width = module.stride
            module.register_forward_pre_hook(partial(_step, (height, width)))


def _is_centred(conv: nn.Conv2d) -> bool:
    half = tuple(size // 2 for size in conv.kernel_size)
    odd = all(size % 2 for size in conv.kernel_size)
    return odd and any(half) and conv.padding == half and conv.dilation == (1, 1)


def _step(stride: tuple[int, ...], conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    conv.stride = (1, 1) if inputs[0].shape[-2:] == torch.Size((1, 1)) else stride  # type: ignore[assignment]
