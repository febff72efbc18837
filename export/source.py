"""What is exported: an encoder and where it is from; of a run, a checkpoint, a fine-tuning, or with fresh weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from byol.bundle.folder import Bundle
from byol.bundle.manifest import MANIFEST
from byol.encoders.build import build_encoder
from byol.encoders.pretrained import Pretrained, Three
from byol.finetuning.checkpoint import read_finetuned
from byol.pretrained import architecture_of, is_bundle, normalisation_of, read_pretrained, resize_of
from byol.run import FINETUNE, LAST, is_run_folder
from byol.text import printable
from byol.training.checkpoint import checkpoint_file, finite, read_checkpoint, task_of

OF_ANOTHER = "for another toolkit's weights, add --from auto --arch NAME"


def read_run(path: Path) -> Pretrained:
    """The online encoder of a run folder or of one of its checkpoints, or what `byol finetune` made of an encoder.

    Raises `ValueError` when the file is damaged, does not fit, or holds numbers that are not finite.
    """
    if (path / MANIFEST).is_file():
        raise ValueError(f"{printable(path)} is a bundle; export the run or checkpoint it was made from")
    _require_weights(path)
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"{printable(path)} is not a byol checkpoint; {OF_ANOTHER}")
    file = checkpoint_file(path)
    source = read_finetuned(file) if _task(file, path) == FINETUNE else read_pretrained(file)
    if not finite(source.encoder.state_dict()):
        raise ValueError(f"{printable(path)}: the encoder's weights are not all finite; export an earlier checkpoint")
    return source


def _require_weights(path: Path) -> None:
    """Raise `ValueError` for what holds no weights to read: an ONNX graph, and a folder that is no run."""
    if path.suffix.lower() == ".onnx":
        raise ValueError(f"{printable(path)} is an ONNX graph; export the checkpoint that it was made from")
    if path.is_dir() and not (is_run_folder(str(path)) or os.path.lexists(path / LAST)):
        what = "is neither a run nor a bundle; name the weights' file in it, and"
        raise ValueError(f"{printable(path)} {what} {OF_ANOTHER}")


def _task(file: Path, path: Path) -> str:
    """What a checkpoint `file` was made for, which is at `path` or in the run there."""
    try:
        return task_of(file)
    except ValueError as error:
        if not path.is_file():  # a run, whose own checkpoint is damaged
            raise
        raise ValueError(f"{error}; {OF_ANOTHER}") from error


def is_own(path: Path) -> bool:
    """Whether byol wrote these weights: a bundle, a run (also without a checkpoint yet), or one of its checkpoints."""
    if is_bundle(path) or is_run_folder(str(path)):
        return True
    try:
        task_of(path)
    except ValueError:
        return False
    return True


def read_untrained(path: Path) -> Pretrained:
    """The encoder of a bundle, a run or a checkpoint as it was before any training.

    A run's seed is used; bundles and fine-tunings do not know theirs: 0. Raises `ValueError`.
    """
    if is_bundle(path):
        return _untrained_bundle(path)
    if task_of(checkpoint_file(path)) == FINETUNE:
        return untrained(read_run(path))
    config = read_checkpoint(path).config
    size, seed = config.image_size, config.seed
    return _fresh(config.arch, config.resolved_stem, size, config.mean, config.std, None, seed)


def _untrained_bundle(path: Path) -> Pretrained:
    manifest = Bundle.open(path).manifest
    arch, stem, size = architecture_of(manifest), manifest.architecture.stem, manifest.image_size
    return _fresh(arch, stem, size, *normalisation_of(manifest), resize_of(manifest), 0)


def untrained(source: Pretrained, seed: int = 0) -> Pretrained:
    """The same architecture and input with weights freshly drawn, as a run of this seed begins with them."""
    return _fresh(source.arch, source.stem, source.image_size, source.mean, source.std, source.resize, seed)


def _fresh(arch: str, stem: str, size: int, mean: Three, std: Three, resize: int | None, seed: int) -> Pretrained:
    """The trainer builds the encoder first, right after it has set the seed: the weights are those of its step 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(arch, stem, size)
    return Pretrained(encoder.eval(), arch, stem, size, mean, std, resize, untrained_seed=seed)
