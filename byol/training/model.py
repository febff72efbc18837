"""BYOL's networks and loss: encoder, projector, predictor, the online/target pair.

Legend: B batch, C channels, S view pixels, D feature, P projection.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from byol.encoders.activations import encoder_channels_last
from byol.encoders.build import build_encoder, feature_dim
from byol.training.config import TrainConfig
from byol.training.data.kinds import further_sizes, kinds_of


def mlp(inputs: int, hidden: int, outputs: int, norm: bool = True, layers: int = 2) -> nn.Sequential:
    """Projector or predictor: linear, batch-norm, ReLU, linear without bias and without norm (paper section 3.2).

    With `layers` above 2, the first three of these as often as it takes.
    """
    parts: list[nn.Module] = []
    for width in (inputs, *[hidden] * (layers - 2)):
        norms = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        parts += [nn.Linear(width, hidden), norms, nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Linear(hidden, outputs, bias=False))


class Network(nn.Module):
    """Encoder and projector: what online and target network have in common."""

    def __init__(self, encoder: nn.Module, projector: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def outputs(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """A view (B, 3, S, S) to its features (B, D) and its projection (B, P)."""
        features = self.encoder(view)
        return features, self.projector(features)

    def forward(self, view: Tensor) -> Tensor:
        """A view (B, 3, S, S) to its projection (B, P)."""
        return self.outputs(view)[1]


class Observation(NamedTuple):
    """What the monitor looks at, from view 1 and its cross-view target: detached tensors."""

    features: Tensor  # (B, D)
    projection: Tensor  # (B, P)
    prediction: Tensor  # (B, P)
    target: Tensor  # (B, P) target projection of view 2
    own_target: Tensor  # (B, P) target projection of view 1


class BYOL(nn.Module):
    """The online network with its predictor, and the target network that follows it.

    The target network stays in training mode, so it normalises by its own batch statistics; its parameters get no
    gradient and move only in `update_target`. Further kinds of view have predictors of their own (arXiv 2602.05845):
    aligning a small crop or a masked view with a whole one is another task than aligning two whole ones.
    """

    def __init__(self, config: TrainConfig):
        super().__init__()
        sizes = further_sizes(config)
        encoder = build_encoder(config.arch, config.resolved_stem, config.image_size, sizes, config.drop_path)
        layers, width = config.projector_layers, config.projector_hidden
        projector = mlp(feature_dim(encoder), width, config.projector_out, layers=layers)
        self.online = Network(encoder, projector)
        self.predictor = _predictor(config)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        if config.drop_path:
            from byol.encoders.timm_models import without_drop_path

            without_drop_path(self.target)  # stochastic depth is for who learns
        own = kinds_of(config) if config.own_predictors else ()
        self.predictors = nn.ModuleDict({kind.name: _predictor(config) for kind in own})

    def forward(self, *views: Tensor, kind: str = "", targets: tuple[Tensor, ...] = ()) -> tuple[Tensor, Observation]:
        """The loss of one kind of view, a float32 scalar in 0 to 8, and what to monitor.

        Without `kind`: the symmetric loss of the two global views (B, 3, S, S). Else: of views of this kind, against
        the `targets` (B, P) of both global ones.
        """
        return self._further(kind, views, targets) if kind else self._global(*views)

    def _global(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Observation]:
        """The symmetric loss (paper section 3.1).

        Each view is a forward of its own, in both networks, so that batch-norm sees one view at a time.
        """
        features1, projection1 = self.online.outputs(view1)
        prediction1, prediction2 = self.predictor(projection1), self.predictor(self.online(view2))
        with torch.no_grad():
            target1, target2 = self.target(view1), self.target(view2)
        loss = byol_loss(prediction1, target2) + byol_loss(prediction2, target1)
        seen = (features1, projection1, prediction1, target2, target1)
        return loss, Observation(*(tensor.detach() for tensor in seen))

    def _further(self, kind: str, views: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> tuple[Tensor, Observation]:
        """Twice the mean loss of all pairs of a view and a target, as of the global views; all views in one batch.

        Batch-norm sees them together: they are alike.
        """
        count = len(views)
        features, projection = self.online.outputs(torch.cat(views))  # (V * B, D), (V * B, P)
        predictor = self.predictors[kind] if self.predictors else self.predictor
        prediction = predictor(projection)
        own_target, target = (tensor.repeat(count, 1) for tensor in targets)
        loss = byol_loss(prediction, own_target) + byol_loss(prediction, target)
        seen = (features, projection, prediction, target, own_target)
        return loss, Observation(*(tensor.detach() for tensor in seen))

    def compile_networks(self, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Let `compiled` wrap what each network does with a view: each is traced once, not once for every view.

        Predictors and losses are a few small operations and stay as they are. No name of a parameter changes.
        """
        for network in (self.online, self.target):
            network.outputs = compiled(network.outputs)  # type: ignore[method-assign]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Online encoder, projector and predictor by name, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("target.")}

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """target = tau * target + (1 - tau) * online, for every parameter; buffers are left alone (paper eq. 1)."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), 1 - tau)


def _predictor(config: TrainConfig) -> nn.Module:
    width, hidden = config.projector_out, config.predictor_hidden
    return mlp(width, hidden, width, config.predictor_norm) if hidden else nn.Identity()


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
