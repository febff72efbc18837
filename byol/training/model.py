"""BYOL's networks and loss: encoder, projector, predictor, the online/target pair.

Legend: B batch, C channels, S view pixels, D feature, P projection.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol.encoders.activations import encoder_channels_last
from byol.encoders.build import build_encoder, feature_dim
from byol.training.config import TrainConfig


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


def use_channels_last(model: BYOL, image_size: int) -> None:
    """Keep activations of both networks in NHWC order, those of small last maps on a CPU in NCHW order."""
    model.to(memory_format=torch.channels_last)
    for encoder in (model.online.encoder, model.target.encoder):
        encoder_channels_last(encoder, image_size)
