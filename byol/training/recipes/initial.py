"""Weights that a new run starts from: those of a run, a checkpoint or a bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from byol.encoders.build import load_strict
from byol.images.location import last_part
from byol.text import printable
from byol.training.checkpoint import read_checkpoint
from byol.training.config import STEMS, TrainConfig
from byol.training.model import BYOL

WHOLE, PART = "encoder, projector and predictor", "encoder only; projector and predictor are new"


@dataclass(frozen=True)
class Initial:
    """An encoder's weights and settings; `whole`: all networks of a run, None for a bundle.

    `name`: that of the file and, after a space, the digest of the encoder's weights.
    """

    name: str
    arch: str
    stem: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    encoder: dict[str, Tensor]
    whole: dict[str, Tensor] | None

    def applied_to(self, config: TrainConfig) -> TrainConfig:
        """The settings with this encoder, its size and its normalisation. Raises `ValueError`."""
        if self.stem not in STEMS:
            raise ValueError(f"{self.name} has the stem {self.stem}, which byol serves but does not train")
        return config.replace(
            arch=self.arch,
            stem=self.stem,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            init=self.name,
        )

    def load_into(self, model: BYOL) -> str:
        """Load into both networks, with projector and predictor where they fit; a phrase that says what was loaded.

        Raises `ValueError` when the encoder does not fit.
        """
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        if self.whole is not None and shapes == {name: value.shape for name, value in self.whole.items()}:
            load_strict(model, self.whole, self.name)
            return WHOLE
        for network in (model.online, model.target):
            load_strict(network.encoder, self.encoder, self.name)
        return PART

    def networks(self) -> str | None:
        """A digest of all networks' weights; None for a bundle's, which are the encoder's alone."""
        from byol.pretrained import weights_digest

        return None if self.whole is None else weights_digest(self.whole)

    def again(self, networks: str | None) -> Initial | None:
        """The same for a run that began with these `networks` (None: the encoder alone); None where they are others."""
        if networks is None:
            return replace(self, whole=None)
        return self if self.networks() == networks else None


def read_initial(path: Path) -> Initial:
    """Read weights to start from. Raises `ValueError` when there are none."""
    from byol.pretrained import is_bundle, read_pretrained, weights_digest

    found = read_pretrained(path)
    encoder = found.encoder.state_dict()
    whole = None if is_bundle(path) else read_checkpoint(path).model()
    name = f"{printable(last_part(path))} {weights_digest(encoder)}"
    return Initial(name, found.arch, found.stem, found.image_size, found.mean, found.std, encoder, whole)
