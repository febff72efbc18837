"""Batch-norm over the images of all processes, on functional collectives: it runs on CPUs and compiles whole.

torch's own SyncBatchNorm refuses CPU tensors and breaks a compiled graph. Legend: B batch, C channels, R processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Gather(torch.autograd.Function):
    """All processes' tensors, (R, *shape); the gradient of a part is the sum of all processes' gradients of it.

    An all-reduce of parts that are zero elsewhere: the collective that all backends and versions share.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: int, world: int, group: str) -> Tensor:
        ctx.rank, ctx.group = rank, group
        parts = tensor.new_zeros((world, *tensor.shape))
        parts[rank] = tensor
        return _sum(parts, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _sum(gradient.contiguous(), ctx.group)[ctx.rank], None, None, None


def _sum(tensor: Tensor, group: str) -> Tensor:
    reduced = functional.all_reduce(tensor, "sum", group)  # type: ignore[arg-type]
    total: Tensor = functional.wait_tensor(reduced)  # type: ignore[no-untyped-call]
    return total


class SyncBatchNorm(_BatchNorm):
    """A batch-norm layer whose training statistics cover all processes; each must bring the same number of images.

    It takes over the parameters and buffers of `norm`, and what that layer does after normalising (timm's layers
    include the activation). In eval mode it is `norm`.
    """

    def __init__(self, norm: _BatchNorm, rank: int, world: int, group: str):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.after = nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))
        self.train(norm.training)
        self._rank, self._world, self._group = rank, world, group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), found {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) to the same shape and dtype."""
        if not self.training:
            return self._finished(super().forward(input))
        self._check_input_dim(input)
        axes = [0, *range(2, input.dim())]
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        variance, mean = torch.var_mean(values, dim=axes, correction=0)  # (C,) each
        means, variances = _Gather.apply(torch.stack([mean, variance]), self._rank, self._world, self._group).unbind(1)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)  # between processes and within
        self._track(mean.detach(), variance.detach(), self._world * input.numel() // input.shape[1])
        scale = torch.rsqrt(variance + self.eps)
        scale = scale * self.weight if self.affine else scale
        shift = self.bias - mean * scale if self.affine else -mean * scale
        shape = (1, -1, *(1 for _ in axes[1:]))
        return self._finished((values * scale.view(shape) + shift.view(shape)).to(input.dtype))

    def _finished(self, normalised: Tensor) -> Tensor:
        output: Tensor = self.after(normalised)
        return output

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics as torch's batch-norm does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)


def synchronise_norms(module: nn.Module, rank: int, world: int, group: str) -> nn.Module:
    """Replace every batch-norm layer by one that covers all processes; parameters stay the same objects."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, SyncBatchNorm(child, rank, world, group))
        else:
            synchronise_norms(child, rank, world, group)
    return module
