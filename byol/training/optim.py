"""LARS, parameter groups, and the schedules of learning rate and tau as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from byol.encoders.build import require_fit
from byol.training.config import LARGEST, TrainConfig

ROW = 1024  # values; see `_in_rows`


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then a cosine to 0 (paper section 3.2)."""
    if step < warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def tau_at(step: int, total: int, base: float, cosine: bool = True) -> float:
    """The target's momentum at optimizer step `step` (from 0): base to 1 along a cosine (paper section 3.2)."""
    if not cosine:
        return base
    return 1 - (1 - base) * (math.cos(math.pi * step / total) + 1) / 2


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888), as in the paper's released code.

    For a group with `adapt`: d = grad + weight_decay * w; d *= eta * |w| / |d| (1 where a norm is 0); then for
    every group m = momentum * m + d; w -= lr * m. With `clip` the factor of d is min(eta * |w| / |d| / lr, 1), as in
    LARC and solo-learn. A group without `adapt` gets neither decay nor scaling.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        clip: bool = False,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "clip": clip}
        super().__init__(params, {**defaults, "adapt": True})
        self._owned: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("LARS takes no closure")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(params, group)

    def _step_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        updates = [p.grad for p in params if p.grad is not None]
        if group["adapt"]:
            rows, updates = _in_rows(params, updates)
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            rows.mul_(self._ratios(params, updates, group)[self._owners(params), None])
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _owners(self, params: list[Tensor]) -> Tensor:
        """To which of the parameters each row of `_in_rows` belongs: on the device, made once."""
        counts = tuple(_rows(p) for p in params)
        if counts not in self._owned:
            owners = [number for number, count in enumerate(counts) for _ in range(count)]
            self._owned[counts] = torch.tensor(owners, device=params[0].device)
        return self._owned[counts]

    @staticmethod
    def _ratios(params: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> Tensor:
        weight, update = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
        ratios = group["eta"] * weight / update
        if group["clip"]:
            ratios = (ratios / max(group["lr"], 1e-12)).clamp(max=1)
        return torch.where((weight > 0) & (update > 0), ratios, 1.0)


def _rows(tensor: Tensor) -> int:
    return -(-tensor.numel() // ROW)


def _in_rows(params: list[Tensor], values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A copy of `values`, each as its parameter lies in memory, in one matrix (rows, ROW) in which each begins a row.

    So a factor of its own for each is one product: foreach operations with a tensor of factors go one by one.
    """
    counts = [_rows(p) for p in params]
    rows = params[0].new_empty((sum(counts), ROW))
    starts = [ROW * sum(counts[:number]) for number in range(len(counts))]
    copies = [rows.as_strided(p.shape, p.stride(), start) for p, start in zip(params, starts, strict=True)]
    torch._foreach_copy_(copies, values)
    return rows, copies


def build_optimizer(config: TrainConfig, parameters: dict[str, nn.Parameter]) -> Optimizer:
    """The configured optimizer over two groups: weights, and parameters without decay and LARS scaling.

    The second group is every parameter with fewer than two dimensions, so all biases and norm parameters. SGD and AdamW
    are fused on CUDA: one launch, and AdamW counts its steps there.
    """
    fused = next(iter(parameters.values())).device.type == "cuda" or None
    weights = [p for p in parameters.values() if p.ndim > 1]
    excluded = [p for p in parameters.values() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": excluded, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        betas = (0.9, config.beta2)
        return AdamW(groups, lr=config.peak_lr, betas=betas, weight_decay=config.weight_decay, fused=fused)
    if config.optimizer == "sgd":
        momentum, decay = config.momentum, config.weight_decay
        return SGD(groups, lr=config.peak_lr, momentum=momentum, weight_decay=decay, fused=fused)
    groups[1]["adapt"] = False
    return LARS(groups, config.peak_lr, config.momentum, config.weight_decay, config.lars_eta, config.lars_clip)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state as `parameter name + "." + state key` to tensor."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, p in parameters.items()
        for key, value in optimizer.state.get(p, {}).items()
        if value is not None
    }


def load_optimizer_tensors(
    optimizer: Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`: of all parameters, or of none.

    Raises `ValueError` for missing or unexpected tensors and for other shapes or types (see `require_fit`).
    """
    if not tensors:
        return
    keys = ("exp_avg", "exp_avg_sq", "step") if isinstance(optimizer, AdamW) else ("momentum_buffer",)
    count = torch.zeros(())  # of steps
    wanted = {f"{name}.{key}": count if key == "step" else p for name, p in parameters.items() for key in keys}
    require_fit(wanted, tensors, "the checkpoint's optimizer state")
    for full_name in wanted:
        name, _, key = full_name.rpartition(".")
        value, p = tensors[full_name], parameters[name]
        if key == "step" and not 0 <= value < LARGEST["max_steps"]:
            raise ValueError(f"the checkpoint's {full_name} is {value:g}; expected a number of steps")
        # A fused optimizer counts on the parameters' device, and wants its state to lie in memory as they do.
        there = key == "step" and optimizer.defaults["fused"]
        like = p.new_empty((), dtype=count.dtype) if there else wanted[full_name]
        optimizer.state[p][key] = torch.empty_like(like, requires_grad=False).copy_(value)
