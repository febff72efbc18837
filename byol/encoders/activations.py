"""Activations: their memory order (channels last, except a ResNet's last maps on a CPU) and recomputing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

SMALL_MAP = 16  # positions; from 2x2 up to here oneDNN's convolutions are up to a third faster with channels first


def encoder_channels_last(encoder: nn.Module, image_size: int) -> None:
    """Keep an encoder's activations in NHWC order, the small last maps of a ResNet on a CPU in NCHW order."""
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


def recompute_blocks(encoder: nn.Module) -> int:
    """Make every residual or transformer block of an encoder recompute its activations; the number of blocks.

    Outputs, gradients and running statistics stay the same: the second forward does not count. Parameters keep their
    names. Raises `ValueError` for an encoder without such blocks.
    """
    stages = [child for child in encoder.modules() if isinstance(child, nn.Sequential | nn.ModuleList)]
    blocks = [block for stage in stages for block in stage if _is_block(block)]
    if not blocks:
        raise ValueError(f"recompute: {type(encoder).__name__} has no blocks to recompute; leave out --recompute")
    for block in blocks:
        block.forward = _recomputing(block, block.forward)
    return len(blocks)


def _is_block(module: nn.Module) -> bool:
    """A block of a stage: Bottleneck, BasicBlock, a transformer's Block, ConvNeXtBlock, InvertedResidual ..."""
    name = type(module).__name__
    return name.endswith(("Block", "Bottleneck")) or "Residual" in name


def _recomputing(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run_again(*inputs: Any) -> Any:
        passes = 0

        def run(*inputs: Any) -> Any:
            nonlocal passes
            passes += 1
            with _statistics_kept(block, passes > 1):
                return forward(*inputs)

        return checkpoint(run, *inputs, use_reentrant=False)

    return run_again


@contextmanager
def _statistics_kept(block: nn.Module, keep: bool) -> Iterator[None]:
    """While active, batch-norm layers leave their running statistics alone."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats] if keep else []
    held = [(norm, norm.momentum) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in held:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
