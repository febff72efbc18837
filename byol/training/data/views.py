"""A normalised view of a batch as one function of tensors: torch.compile takes it whole.

Legend: B batch, M canvas pixels, S view pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from byol.training.data.augment import cut_out, params_of, render
from byol.training.data.view_config import ViewConfig


@dataclass(frozen=True)
class Framing:
    """How views are normalised, by `mean` and `std` (3, 1, 1), and in which order their values lie."""

    mean: Tensor
    std: Tensor
    layout: torch.memory_format

    def normalised(self, view: Tensor) -> Tensor:
        """A view (B, 3, S, S) in 0..1, normalised."""
        return ((view - self.mean) / self.std).contiguous(memory_format=self.layout)


def make_view(
    config: ViewConfig,
    images: Tensor,
    aspect: Tensor,
    numbers: Tensor,
    size: int,
    framing: Framing,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Turn uint8 images (B, M, M, 3) of the given aspect (B,) into one view, float32 (B, 3, size, size).

    Nothing is drawn here: `numbers` are those of `random_numbers` for all of `world` processes, of which this is number
    `rank`.
    """
    params = params_of(config, aspect, numbers, rank, world)
    view = framing.normalised(render(config, images.permute(0, 3, 1, 2), params, size))
    return cut_out(view, params.cutout) if config.cutout[1] else view
