"""The recipe for a set of images on a machine, where no preset was named: a preset, and what is changed in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from byol.training.config import TrainConfig
from byol.training.data.view_config import ViewConfig
from byol.training.recipes import photographs
from byol.training.recipes.survey import Survey

LEAST_EPOCHS, MOST_EPOCHS = 10, 1000
SMALL = 48  # px: images of less have no fine detail to blur, and those without colour are mostly signs
ROOMY = 20e9  # bytes of a GPU's memory with which the preset for many images needs no smaller micro-batches


@dataclass(frozen=True)
class Recipe:
    """Settings, and why: a few short phrases for people."""

    config: TrainConfig
    reasons: tuple[str, ...]


def choose(found: Survey, device: str, memory: float = math.inf) -> Recipe:
    """The recipe for these images on `device` (cpu or cuda, with `memory` bytes).

    The number of images decides the preset, and its length, so that every set of a kind takes about as long; the size
    of the images the size of the views; images without colour get no changes of colour.
    """
    nominal, config = _preset(found.images, device)
    seen = nominal * config.epochs
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, round(seen / found.images)))
    reasons = [f"{found.images:,} images on {'a GPU' if device == 'cuda' else 'a CPU'}: {config.preset}"]
    config = config.replace(epochs=epochs, batch_size=_batch(config.batch_size, found.images))
    if device == "cuda" and config.accumulate > 1 and memory < ROOMY:
        config = config.replace(accumulate=4 * config.accumulate)
        reasons.append(f"{memory / 1e9:.0f} GB of memory: micro-batches of {config.batch_size // config.accumulate}")
    if config.batch_size % config.accumulate or config.batch_size < 2 * config.accumulate:
        config = config.replace(accumulate=1)
    size = _view_size(found.side, config.image_size)
    if size != config.image_size:
        config = config.replace(image_size=size)
        reasons.append(f"images of {found.side} px: views of {size} px")
    if found.side < SMALL:
        config = _without_blur(config)
    if found.grey:
        config = _without_colour(config, found)
        reasons.append("no colour: no changes of colour" + (", and no flips" if found.side < SMALL else ""))
    return Recipe(config, tuple(reasons))


def _preset(images: int, device: str) -> tuple[int, TrainConfig]:
    """The preset for the nearest power of ten, and the number of images it is for."""
    by_size = {
        1_000: (photographs.photos_cpu_1k, photographs.photos_gpu_1k),
        10_000: (photographs.photos_cpu_10k, photographs.photos_gpu_10k),
        100_000: (photographs.photos_cpu_100k, photographs.photos_gpu_100k),
    }
    nominal = min(by_size, key=lambda size: abs(math.log(size / images)))
    return nominal, by_size[nominal][device == "cuda"]()


def _batch(wanted: int, images: int) -> int:
    """A power of two, at most a quarter of the images, so that an epoch has four steps or more; at least 2."""
    return min(wanted, 1 << max(1, int(math.log2(max(2, images / 4)))))


def _view_size(side: int, wanted: int) -> int:
    """Small images are enlarged by half or more: the encoder's first layers shrink them to a quarter."""
    if side <= 16:
        return 24
    return min(wanted, max(32, math.ceil(1.5 * side / 16) * 16))


def _without_blur(config: TrainConfig) -> TrainConfig:
    return config.replace(view1=replace(config.view1, blur=0.0), view2=replace(config.view2, blur=0.0))


def _without_colour(config: TrainConfig, found: Survey) -> TrainConfig:
    def grey(view: ViewConfig) -> ViewConfig:
        flip = 0.0 if found.side < SMALL else view.flip  # a letter or digit in a mirror is another sign, or none
        return replace(view, saturation=0.0, hue=0.0, grey=0.0, flip=flip)

    mean, std = round(found.mean, 2), max(0.05, round(found.std, 2))
    return config.replace(
        view1=grey(config.view1), view2=grey(config.view2), mean=(mean, mean, mean), std=(std, std, std)
    )
