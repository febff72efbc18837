"""A trained encoder back in torch: from a run, a checkpoint or a bundle, with what it needs and where it comes from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from byol.checkpoint import Checkpoint, read_checkpoint
from byol.config import TIMM
from byol.model import build_encoder, load_strict


@dataclass(frozen=True)
class Pretrained:
    """An encoder in eval mode, how to rebuild and feed it, and what its training was.

    `encoder` maps normalised float images (B, 3, S, S) to features (B, D). `training`, `origin` and `finetuning` hold
    the fields of a manifest's objects of these names (docs/bundle.md), None where there is nothing to say.
    """

    encoder: nn.Module
    arch: str
    stem: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    training: dict[str, Any] | None = None
    origin: dict[str, Any] | None = None
    finetuning: dict[str, Any] | None = None


def load_encoder(location: str | Path) -> nn.Module:
    """The encoder of a bundle, a run or a checkpoint as a torch module in eval mode, for fine-tuning.

    It maps normalised float images (B, 3, S, S) to features (B, D). Raises `ValueError` when the location holds none.
    """
    return read_pretrained(Path(location)).encoder


def read_pretrained(path: Path) -> Pretrained:
    """The online encoder of a run or a checkpoint, or the encoder of a bundle. Raises `ValueError`."""
    if (path / "manifest.json").is_file():
        return _of_bundle(path)
    checkpoint = read_checkpoint(path / "last.safetensors" if path.is_dir() else path)
    config = checkpoint.config
    encoder = build_encoder(config.arch, config.resolved_stem, config.image_size)
    load_strict(encoder, checkpoint.encoder(), str(path))
    stem, facts = config.resolved_stem, training_facts(checkpoint)
    return Pretrained(encoder.eval(), config.arch, stem, config.image_size, config.mean, config.std, facts)


def training_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a manifest says of the training: data, images, steps, epochs, and the digest of the settings."""
    settings = json.dumps(checkpoint.config.to_dict(), sort_keys=True)
    images = int(checkpoint.data["images"])
    return {
        "data": str(checkpoint.data["name"]),
        "images": images,
        "steps": checkpoint.step,
        "epochs": round(checkpoint.step * checkpoint.config.batch_size / images, 3),
        "config_sha256": hashlib.sha256(settings.encode()).hexdigest(),
    }


def _of_bundle(path: Path) -> Pretrained:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        architecture, preprocess = manifest["architecture"], manifest["preprocess"]
        prefix = TIMM if architecture["library"] == "timm" else ""
        arch, stem, size = prefix + architecture["name"], architecture["stem"], manifest["image_size"]
        encoder = build_encoder(arch, stem, size)
        mean, std = (tuple(preprocess[name]) for name in ("mean", "std"))
        with safe_open(path / "encoder.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} is not a readable bundle: {error}") from error
    load_strict(encoder, tensors, str(path))
    facts = (manifest.get(name) for name in ("training", "origin", "finetuning"))
    return Pretrained(encoder.eval(), arch, stem, size, mean, std, *facts)


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """A digest of an encoder's weights: tells whether a resumed fine-tuning starts from the same ones."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
