"""What is exported: an encoder and where it is from; of a run, a checkpoint, a fine-tuning, or with fresh weights."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn

from byol.bundle.folder import Bundle
from byol.bundle.manifest import MANIFEST, Finetuning, Origin, Training
from byol.bundle.measured import Head
from byol.bundle.schema import BundleError, build
from byol.encoders import TIMM
from byol.encoders.build import Pretrained, build_encoder
from byol.export.foreign.input import Three
from byol.finetuning.checkpoint import read_finetuned
from byol.pretrained import is_bundle, read_pretrained
from byol.run import FINETUNE
from byol.serve.fuse import Layer
from byol.text import printable
from byol.training.checkpoint import checkpoint_file, finite, read_checkpoint, task_of


@dataclass(frozen=True)
class Source:
    """An encoder in eval mode, how to rebuild and feed it, and where its weights come from.

    `resize`: what an image's shorter side is brought to, before the crop; None for the usual. A fine-tuned one also has
    the `layer` behind it, and what the manifest says of that (`head`) and of the tuning. `untrained_seed`: that of
    weights which nothing trained.
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
    layer: Layer | None = None
    head: Head | None = None
    finetuning: Finetuning | None = None
    untrained_seed: int | None = None

    def untrained(self, seed: int = 0) -> Source:
        """The same architecture and input with weights freshly drawn, as a run of this seed begins with them."""
        return _fresh(self.arch, self.stem, self.image_size, self.mean, self.std, self.resize, seed)


def read_run(path: Path) -> Source:
    """The online encoder of a run folder or of one of its checkpoints, or what `byol finetune` made of an encoder.

    Raises `ValueError` when the file is damaged, does not fit, or holds numbers that are not finite.
    """
    if (path / MANIFEST).is_file():
        raise ValueError(f"{printable(path)} is a bundle; export the run or checkpoint it was made from")
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(
            f"{printable(path)} is not a byol checkpoint; for another toolkit's, add --from auto --arch NAME"
        )
    file = checkpoint_file(path)
    source = _finetuned(file) if task_of(file) == FINETUNE else source_of(read_pretrained(file))
    if not finite(source.encoder.state_dict()):
        raise ValueError(f"{printable(path)}: the encoder's weights are not all finite; export an earlier checkpoint")
    return source


def read_untrained(path: Path) -> Source:
    """The encoder of a bundle, a run or a checkpoint as it was before any training: see `Source.untrained`.

    A run's seed is used; bundles and fine-tunings do not know theirs: 0. Raises `ValueError`.
    """
    if is_bundle(path):
        return _untrained_bundle(path)
    if task_of(checkpoint_file(path)) == FINETUNE:
        return read_run(path).untrained()
    config = read_checkpoint(path).config
    size, seed = config.image_size, config.seed
    return _fresh(config.arch, config.resolved_stem, size, config.mean, config.std, None, seed)


def _untrained_bundle(path: Path) -> Source:
    manifest = Bundle.open(path).manifest
    architecture, preprocess = manifest.architecture, manifest.preprocess
    arch = (TIMM if architecture.library == "timm" else "") + architecture.name
    mean, std = ((values[0], values[1], values[2]) for values in (preprocess.mean, preprocess.std))
    return _fresh(arch, architecture.stem, manifest.image_size, mean, std, preprocess.resize, 0)


def _fresh(arch: str, stem: str, size: int, mean: Three, std: Three, resize: int | None, seed: int) -> Source:
    """The trainer builds the encoder first, right after it has set the seed: the weights are those of its step 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(arch, stem, size)
    return Source(encoder.eval(), arch, stem, size, mean, std, resize, untrained_seed=seed)


def source_of(trained: Pretrained) -> Source:
    """What was read, with its facts as a manifest has them. Raises `BundleError` for facts that are damaged."""
    known = {field.name: getattr(trained, field.name) for field in fields(trained)}
    facts = {"training": Training, "origin": Origin, "finetuning": Finetuning}
    return Source(**{**known, **{name: build(kind, known[name]) for name, kind in facts.items() if known[name]}})


def _finetuned(file: Path) -> Source:
    tuned = read_finetuned(file)
    try:
        head, source = build(Head, tuned.head), source_of(tuned.source)
    except BundleError as error:
        raise ValueError(f"{printable(file)} has damaged metadata: {error}") from error
    return replace(source, layer=Layer(tuned.weight.numpy(), tuned.bias.numpy()), head=head)
