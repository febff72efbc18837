"""DeepMind's released BYOL checkpoints: Haiku's parameters under torchvision's names.

They are pickles of a JAX program. Converted where they can be trusted, to an `.npz` of arrays named
`online_params/MODULE/NAME` and `online_state/MODULE/NAME` (docs/export.md), they are read here. Only bottleneck ResNets
(50, 101) have a torchvision model of the same shape. Their strided layers pad as TensorFlow does.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

ENCODER = "online_encoder."  # what the encoder's tensors are put under
NORM = {"scale": "weight", "offset": "bias"}
AVERAGE = {"mean_ema": "running_mean", "var_ema": "running_var"}
_BLOCK = re.compile(r"block_group_(\d+)/~/block_(\d+)/~/(.+)")


def torch_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Haiku's arrays renamed and transposed; tensors of any other file as they are.

    What is not known keeps its name, with points for slashes, so that whoever takes the encoder stumbles over it.
    """
    root = next(
        (m[1] for m in (re.match(r"online_params/(\w+)/~/initial_conv/w", name) for name in tensors) if m), None
    )
    if root is None:
        return tensors
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        own = rest.removeprefix(f"{root}/~/") if part in ("online_params", "online_state") else rest
        entries = _translated(own, value) if own != rest else None
        renamed |= (
            {ENCODER + key: tensor for key, tensor in entries.items()}
            if entries is not None
            else {name.replace("/", "."): value}
        )
    return renamed


def _translated(name: str, value: Tensor) -> dict[str, Tensor] | None:
    """One array of the encoder under torchvision's name; {} for what torch keeps no counterpart of, None if unknown."""
    module, _, leaf = name.rpartition("/")
    if leaf == "w" and value.ndim == 4:
        return {f"{_module(module)}.weight": value.permute(3, 2, 0, 1).contiguous()}  # HWIO to OIHW
    if leaf in NORM:
        return {f"{_module(module)}.{NORM[leaf]}": value.reshape(-1)}
    norm, _, average = module.rpartition("/~/")
    if average not in AVERAGE:
        return None
    if leaf == "average":  # what Haiku's batch-norm normalises by; `hidden` is the same before its bias correction
        return {f"{_module(norm)}.{AVERAGE[average]}": value.reshape(-1)}
    if leaf == "counter" and average == "mean_ema":
        return {f"{_module(norm)}.num_batches_tracked": value.reshape(()).to(torch.int64)}
    return {}


def _module(name: str) -> str:
    """A layer's name at torchvision: `block_group_0/~/block_1/~/conv_2` is `layer1.1.conv3`."""
    if name in ("initial_conv", "initial_batchnorm"):
        return {"initial_conv": "conv1", "initial_batchnorm": "bn1"}[name]
    match = _BLOCK.fullmatch(name)
    if match is None:
        return name
    layer, block, part = int(match[1]) + 1, match[2], match[3]
    names = {"shortcut_conv": "downsample.0", "shortcut_batchnorm": "downsample.1"}
    kind, _, number = part.rpartition("_")
    if part not in names and number.isdecimal():
        names[part] = {"conv": "conv", "batchnorm": "bn"}.get(kind, kind) + str(int(number) + 1)
    return f"layer{layer}.{block}.{names.get(part, part)}"
