"""Load a trained encoder into torch from a run, a checkpoint or a bundle, with its input settings and origin."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from byol.bundle.folder import Bundle
from byol.bundle.manifest import MANIFEST, WEIGHTS, Manifest, Training
from byol.encoders import TIMM
from byol.encoders.build import encoder_with
from byol.encoders.pretrained import Pretrained, Three
from byol.images.decode import Preprocess
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
    stem = config.resolved_stem
    encoder = encoder_with(config.arch, stem, config.image_size, checkpoint.encoder(), printable(path))
    facts = training_facts(checkpoint)
    return Pretrained(encoder, config.arch, stem, config.image_size, config.mean, config.std, training=facts)


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle, not a run or a checkpoint."""
    return (path / MANIFEST).is_file()


def training_facts(checkpoint: Checkpoint) -> Training:
    """What a manifest says of a training: data, images, steps, epochs, and the digest of the settings."""
    images: int = checkpoint.data["images"]
    return Training(
        data=on_one_line(checkpoint.data["name"]),  # a manifest allows no control characters
        images=images,
        steps=checkpoint.step,
        epochs=round(checkpoint.step / max(1, images // checkpoint.config.batch_size), 3),  # as training counts them
        config_sha256=settings_digest(checkpoint.config.to_dict()),
        init=on_one_line(checkpoint.config.init) or None,
    )


def _of_bundle(path: Path) -> Pretrained:
    """Read as in serving: damaged or edited bundles and newer schemas are refused."""
    bundle = Bundle.open(path)
    try:
        tensors = load(bundle.read(WEIGHTS))
    except SafetensorError as error:
        where = printable(path / WEIGHTS)
        raise ValueError(f"{where} is not a readable safetensors file: {reason_of(error)}") from error
    manifest = bundle.manifest
    arch, stem, size = architecture_of(manifest), manifest.architecture.stem, manifest.image_size
    encoder = encoder_with(arch, stem, size, tensors, printable(path))
    return Pretrained(
        encoder,
        arch,
        stem,
        size,
        *normalisation_of(manifest),
        resize=resize_of(manifest),
        training=manifest.training,
        origin=manifest.origin,
        finetuning=manifest.finetuning,
        untrained_seed=manifest.untrained_seed,
    )


def architecture_of(manifest: Manifest) -> str:
    """The name of a bundle's encoder as `--arch` has it."""
    return (TIMM if manifest.architecture.library == "timm" else "") + manifest.architecture.name


def normalisation_of(manifest: Manifest) -> tuple[Three, Three]:
    """Mean and deviation of a bundle's input, channel by channel."""
    mean, std = manifest.preprocess.mean, manifest.preprocess.std
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def resize_of(manifest: Manifest) -> int | None:
    """What a bundle brings an image's shorter side to; None for the usual."""
    resize = manifest.preprocess.resize
    return None if resize == Preprocess.for_size(manifest.image_size).resize else resize


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """A digest of an encoder's weights, to check that a resumed fine-tuning starts from the same ones."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
