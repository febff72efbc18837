"""An encoder with everything that is known of it: what training, fine-tuning and export hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from byol.bundle.manifest import Finetuning, Origin, Training
from byol.bundle.measured import Head
from byol.images.decode import Preprocess

Three = tuple[float, float, float]


@dataclass(frozen=True)
class Pretrained:
    """An encoder in eval mode, how to rebuild and feed it, and where its weights come from.

    `encoder` maps normalised float images (B, 3, S, S) to features (B, D). `resize`: what an image's shorter side is
    brought to before the crop; None for the usual. `layer`: the weight (C, D) and bias (C,) of a classifier trained
    with it, of which `head` is what a manifest says. `untrained_seed`: that of weights which nothing trained.
    """

    encoder: nn.Module
    arch: str
    stem: str
    image_size: int
    mean: Three
    std: Three
    resize: int | None = None
    training: Training | None = None
    origin: Origin | None = None
    finetuning: Finetuning | None = None
    layer: tuple[Tensor, Tensor] | None = None
    head: Head | None = None
    untrained_seed: int | None = None

    @property
    def preprocess(self) -> Preprocess:
        """What a bundle of it does with images, and so whatever measures it."""
        usual = Preprocess.for_size(self.image_size)
        return replace(usual, resize=self.resize or usual.resize)
