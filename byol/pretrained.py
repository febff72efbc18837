"""Load a trained encoder into torch from a run, a checkpoint or a bundle, with its input settings and origin."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from byol.bundle.folder import Bundle
from byol.bundle.manifest import WEIGHTS
from byol.bundle.schema import plain
from byol.encoders import TIMM
from byol.encoders.build import Pretrained, encoder_with
from byol.run import settings_digest
from byol.text import on_one_line, printable, reason_of
from byol.training.checkpoint import Checkpoint, read_checkpoint


def load_encoder(location: str | Path) -> nn.Module:
    """The encoder of a bundle, a run or a checkpoint as a torch module in eval mode, for fine-tuning.

    It maps normalised float images (B, 3, S, S) to features (B, D). Raises `ValueError` when the location holds none.
    """
    return read_pretrained(Path(location)).encoder


def read_pretrained(path: Path) -> Pretrained:
    """The online encoder of a run or a checkpoint, or the encoder of a bundle. Raises `ValueError`."""
    if is_bundle(path):
        return _of_bundle(path)
    checkpoint = read_checkpoint(path)
    config = checkpoint.config
    stem, facts = config.resolved_stem, training_facts(checkpoint)
    encoder = encoder_with(config.arch, stem, config.image_size, checkpoint.encoder(), printable(path))
    return Pretrained(encoder, config.arch, stem, config.image_size, config.mean, config.std, facts)


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle, not a run or a checkpoint."""
    return (path / "manifest.json").is_file()


def training_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The `training` object of a manifest: data, images, steps, epochs, and the digest of the settings."""
    images: int = checkpoint.data["images"]
    return {
        "data": on_one_line(checkpoint.data["name"]),  # a manifest allows no control characters
        "images": images,
        "steps": checkpoint.step,
        "epochs": round(checkpoint.step * checkpoint.config.batch_size / images, 3),
        "config_sha256": settings_digest(checkpoint.config.to_dict()),
    }


def _of_bundle(path: Path) -> Pretrained:
    """Read as in serving: damaged or edited bundles and newer schemas are refused."""
    bundle = Bundle.open(path)
    architecture, preprocess = bundle.manifest.architecture, bundle.manifest.preprocess
    arch = (TIMM if architecture.library == "timm" else "") + architecture.name
    size, mean, std = bundle.manifest.image_size, preprocess.mean, preprocess.std
    try:
        tensors = load(bundle.read(WEIGHTS))
    except SafetensorError as error:
        where = printable(path / WEIGHTS)
        raise ValueError(f"{where} is not a readable safetensors file: {reason_of(error)}") from error
    encoder = encoder_with(arch, architecture.stem, size, tensors, printable(path))
    manifest = plain(bundle.manifest)
    facts = (manifest.get(name) for name in ("training", "origin", "finetuning"))
    return Pretrained(encoder, arch, architecture.stem, size, _three(mean), _three(std), *facts)


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """A digest of an encoder's weights, to check that a resumed fine-tuning starts from the same ones."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
