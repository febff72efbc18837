"""Encoders by name, with random or given weights: torchvision's ResNets here, timm's models through `timm_models.py`.

Legend: B batch, C channels, S view pixels, D feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor, nn

from byol.encoders import ARCHITECTURES, STEMS, TIMM
from byol.encoders.same_padding import MULTIPLE, pad_at_the_end
from byol.text import missing


class MeanPool(nn.Module):
    """Global average over H and W. Unlike torch's adaptive pooling it exports to one ONNX node."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to (B, D)."""
        return x.mean(dim=(2, 3))


def build_encoder(
    arch: str, stem: str, image_size: int = 224, further_sizes: Sequence[int] = (), drop_path: float = 0.0
) -> nn.Module:
    """An encoder with random weights that returns its pooled features: (B, 3, S, S) to (B, D).

    Its parameters keep the names of torchvision (a ResNet, without `fc`) or timm (`timm:NAME`, without classifier).
    Stem `cifar` replaces a ResNet's 7x7 stride-2 convolution and max-pool by one 3x3 stride-1 convolution, for small
    images. Three more are for weights trained elsewhere: `cifar-no-relu` also lacks the ReLU after it, `cifar-padded`
    pads by 2 instead of 1, `imagenet-same` pads as TensorFlow does. `image_size` S matters to the latter (a multiple
    of 32) and to timm's models, some of which have one size; for training, these can be made for `further_sizes` too,
    and with stochastic depth at the rate `drop_path`. Raises `ValueError` for an unknown name, an unsuitable size, and
    when timm is missing.
    """
    if arch.startswith(TIMM):
        return _build_timm_encoder(arch.removeprefix(TIMM), stem, image_size, further_sizes, drop_path)
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch is {arch!r}; expected {', '.join(ARCHITECTURES)}, {TIMM}NAME")
    if stem not in STEMS:
        raise ValueError(f"stem is {stem!r}; expected {', '.join(STEMS)}")
    encoder: nn.Module = torchvision.models.get_model(arch, weights=None)
    if stem == "imagenet-same":
        if image_size % MULTIPLE:
            raise ValueError(f"image_size is {image_size}; padding as TensorFlow does needs a multiple of {MULTIPLE}")
        pad_at_the_end(encoder)
    if stem.startswith("cifar"):
        padding = 2 if stem == "cifar-padded" else 1
        conv = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=padding, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        encoder.conv1, encoder.maxpool = conv, nn.Identity()
    if stem == "cifar-no-relu":
        encoder.relu = nn.Identity()
    encoder.avgpool, encoder.fc = MeanPool(), nn.Identity()
    return encoder


def _build_timm_encoder(
    name: str, stem: str, image_size: int, further_sizes: Sequence[int], drop_path: float
) -> nn.Module:
    try:
        from byol.encoders.timm_models import build_timm_encoder
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ValueError(missing("timm", "train", f"{TIMM}{name}")) from error
    if stem != "imagenet":
        raise ValueError(f"stem is {stem!r}; a model of timm's has first layers of its own: expected imagenet")
    return build_timm_encoder(name, image_size, further_sizes, drop_path)


def feature_dim(encoder: nn.Module) -> int:
    """D, the length of the encoder's feature vector: as timm says, or the width of the last norm."""
    if not isinstance(encoder, torchvision.models.ResNet):
        return int(encoder.head_hidden_size)  # type: ignore[arg-type]  # checked by a forward when it was built
    return [m.num_features for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)][-1]


_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_COUNTERS = (*_FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # averaged ones are fractions


def encoder_shapes(arch: str, stem: str, image_size: int) -> dict[str, Tensor]:
    """An encoder's state dict on the meta device: names, shapes and types, without memory. Raises `ValueError`."""
    with torch.device("meta"):
        return build_encoder(arch, stem, image_size).state_dict()


def encoder_with(arch: str, stem: str, image_size: int, tensors: Mapping[str, Tensor], what: str) -> nn.Module:
    """An encoder (see `build_encoder`) in eval mode with weights whose names and shapes match exactly.

    Names and shapes are compared before memory is taken: a small file can name a large architecture. Raises
    `ValueError`, as `build_encoder` and `require_fit`.
    """
    require_fit(encoder_shapes(arch, stem, image_size), tensors, what)
    encoder = build_encoder(arch, stem, image_size)
    encoder.load_state_dict(tensors, strict=True)
    return encoder.eval()


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load tensors into a module that they match exactly. Raises `ValueError`: see `require_fit`."""
    require_fit(module.state_dict(), tensors, what)
    module.load_state_dict(tensors, strict=True)


def require_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise `ValueError` with a sorted list of what is missing, unexpected, or of another shape or type.

    Floats may have another precision and counters any real type; nothing else may differ.
    """
    problems = [f"missing: {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected: {name}" for name in sorted(tensors.keys() - expected.keys())]
    for name in sorted(expected.keys() & tensors.keys()):
        wanted, found = expected[name], tensors[name]
        if wanted.shape != found.shape:
            problems.append(f"shape: {name} is {tuple(found.shape)}, expected {tuple(wanted.shape)}")
        elif found.dtype not in (wanted.dtype, *(_FLOATS if wanted.is_floating_point() else _COUNTERS)):
            problems.append(f"type: {name} is {found.dtype}, expected {wanted.dtype}")
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"{what} does not fit this model: {'; '.join(problems[:20])}{more}")
