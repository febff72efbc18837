"""BYOL's networks and loss: encoder, projector, predictor, the online/target pair.

Legend: B batch, C channels, S view pixels, D feature, P projection.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from byol.config import ARCHITECTURES, TIMM, TrainConfig
from byol.same_padding import MULTIPLE, pad_at_the_end

ENCODER_STEMS = ("imagenet", "cifar", "cifar-no-relu", "imagenet-same")


class MeanPool(nn.Module):
    """Global average over H and W. Unlike torch's adaptive pooling it exports to one ONNX node."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to (B, D)."""
        return x.mean(dim=(2, 3))


def build_encoder(arch: str, stem: str, image_size: int = 224) -> nn.Module:
    """An encoder with random weights that returns its pooled features: (B, 3, S, S) to (B, D).

    Its parameters keep the names of torchvision (a ResNet, without `fc`) or timm (`timm:NAME`, without classifier).
    Stem `cifar` replaces a ResNet's 7x7 stride-2 convolution and max-pool by one 3x3 stride-1 convolution, for small
    images. Two more are for weights trained elsewhere: `cifar-no-relu` also lacks the ReLU after it, `imagenet-same`
    pads as TensorFlow does. `image_size` S matters to that one (a multiple of 32) and to timm's models, of which some
    are built for one size. Raises `ValueError` for an unknown name, a size that does not do, and when timm is missing.
    """
    if arch.startswith(TIMM):
        return _build_timm_encoder(arch.removeprefix(TIMM), stem, image_size)
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch is {arch!r}; legal: {', '.join(ARCHITECTURES)}, {TIMM}NAME")
    if stem not in ENCODER_STEMS:
        raise ValueError(f"stem is {stem!r}; legal: {', '.join(ENCODER_STEMS)}")
    encoder: nn.Module = torchvision.models.get_model(arch, weights=None)
    if stem == "imagenet-same":
        if image_size % MULTIPLE:
            raise ValueError(f"image_size is {image_size}; padding as TensorFlow does needs a multiple of {MULTIPLE}")
        pad_at_the_end(encoder)
    if stem.startswith("cifar"):
        conv = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        encoder.conv1, encoder.maxpool = conv, nn.Identity()
    if stem == "cifar-no-relu":
        encoder.relu = nn.Identity()
    encoder.avgpool, encoder.fc = MeanPool(), nn.Identity()
    return encoder


def _build_timm_encoder(name: str, stem: str, image_size: int) -> nn.Module:
    try:
        from byol.timm_encoder import build_timm_encoder
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ValueError("timm is needed and not installed; run: pip install 'byol[timm]'") from error
    if stem != "imagenet":
        raise ValueError(f"stem is {stem!r}; a model of timm's has first layers of its own, legal: imagenet")
    return build_timm_encoder(name, image_size)


def feature_dim(encoder: nn.Module) -> int:
    """D, the length of the encoder's feature vector: what timm says of its model, or the width of the last norm."""
    if not isinstance(encoder, torchvision.models.ResNet):
        return int(encoder.head_hidden_size)  # type: ignore[arg-type]  # checked by a forward when it was built
    return [m.num_features for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)][-1]


def mlp(inputs: int, hidden: int, outputs: int, norm: bool = True) -> nn.Sequential:
    """Projector or predictor: linear, batch-norm, ReLU, linear without bias and without norm (paper section 3.2)."""
    layers = [
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden) if norm else nn.Identity(),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs, bias=False))


class Network(nn.Module):
    """Encoder and projector: what online and target network have in common."""

    def __init__(self, encoder: nn.Module, projector: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, view: Tensor) -> Tensor:
        """A view (B, 3, S, S) to its projection (B, P)."""
        projection: Tensor = self.projector(self.encoder(view))
        return projection


class Observation(NamedTuple):
    """What the monitor looks at, from view 1 and its cross-view target: detached tensors."""

    features: Tensor  # (B, D)
    projection: Tensor  # (B, P)
    prediction: Tensor  # (B, P)
    target: Tensor  # (B, P) target projection of view 2


class BYOL(nn.Module):
    """The online network with its predictor, and the target network that follows it.

    The target network stays in training mode, so it normalises by its own batch statistics; its parameters get no
    gradient and move only in `update_target`.
    """

    def __init__(self, config: TrainConfig):
        super().__init__()
        encoder = build_encoder(config.arch, config.resolved_stem, config.image_size)
        projector = mlp(feature_dim(encoder), config.projector_hidden, config.projector_out)
        self.online = Network(encoder, projector)
        self.predictor: nn.Module = nn.Identity()
        if config.predictor_hidden:
            self.predictor = mlp(
                config.projector_out, config.predictor_hidden, config.projector_out, config.predictor_norm
            )
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Observation]:
        """The symmetric loss of two views (B, 3, S, S), a float32 scalar, and what to monitor (paper section 3.1).

        Each view is a forward of its own, in both networks, so that batch-norm sees one view at a time.
        """
        features1 = self.online.encoder(view1)
        projection1 = self.online.projector(features1)
        prediction1, prediction2 = self.predictor(projection1), self.predictor(self.online(view2))
        with torch.no_grad():
            target1, target2 = self.target(view1), self.target(view2)
        loss = byol_loss(prediction1, target2) + byol_loss(prediction2, target1)
        seen = (features1, projection1, prediction1, target2)
        return loss, Observation(*(tensor.detach() for tensor in seen))

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Online encoder, projector and predictor by name, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("target.")}

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """target = tau * target + (1 - tau) * online, for every parameter; buffers are left alone (paper eq. 1)."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), 1 - tau)


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos(prediction, target), averaged over the batch (paper eq. 2). Both (B, P); a scalar, at least float32."""
    kind = torch.promote_types(prediction.dtype, torch.float32)
    prediction, target = F.normalize(prediction.to(kind), dim=1), F.normalize(target.to(kind), dim=1)
    return (2 - 2 * (prediction * target).sum(dim=1)).mean()


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
    """Raise `ValueError`, listing what is missing, unexpected, or of another shape or type, sorted, unless all agree.

    Floating point may be of another precision, a counter any real number, and nothing else.
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
