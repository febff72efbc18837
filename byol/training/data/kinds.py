"""The kinds of view of a run besides the two global ones. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from byol.training.config import TrainConfig
from byol.training.data.view_config import ViewConfig


@dataclass(frozen=True)
class Kind:
    """A further kind of view: `count` of them an image, (3, `size`, `size`), seen by the online network alone."""

    name: str
    count: int
    size: int
    config: ViewConfig


def kinds_of(config: TrainConfig) -> tuple[Kind, ...]:
    """The further kinds, at the size they have beside views of image_size.

    Their colours are those of view 1, their blur is between those of both.
    """
    local_size = config.local_size or max(8, config.image_size // 2)
    view = replace(config.view1, blur=(config.view1.blur + config.view2.blur) / 2)
    local = replace(view, crop_area=config.local_area)
    cutout = replace(view, cutout=config.cutout_area)
    kinds = (
        Kind("local", config.local_views, local_size, local),
        Kind("cutout", config.cutout_views, config.image_size, cutout),
    )
    return tuple(kind for kind in kinds if kind.count)


def size_beside(kind: Kind, size: int, config: TrainConfig) -> int:
    """The side of a kind's views beside global ones of `size`: smaller in proportion."""
    return max(8, round(kind.size * size / config.image_size))


def further_sizes(config: TrainConfig) -> tuple[int, ...]:
    """The sizes of views, besides image_size, that the encoder meets in training."""
    starts = {config.start_size or config.image_size, config.image_size}
    sizes = starts | {size_beside(kind, start, config) for kind in kinds_of(config) for start in starts}
    return tuple(sorted(sizes - {config.image_size}))
