"""Encoder and ImageClassifier: images in, features or classes out.

Shapes: N images, B batch, S the encoder's image size, D features, C classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence

import numpy as np

from byol.bundle.folder import Bundle
from byol.bundle.manifest import CLASSIFIER, ENCODER, VARIANTS
from byol.bundle.parity import BF16
from byol.images.source import ImageSource
from byol.machine import fast_int8
from byol.serve.items import ImageItem, open_images
from byol.serve.pipeline import Pipeline, open_graph
from byol.serve.providers.installed import is_plugin
from byol.serve.session import Session
from byol.strict_json import fits, require_legal
from byol.text import as_message, printable

_log = logging.getLogger(__name__)


class Encoder(Pipeline):
    """A verified bundle on a device: `encoder(images)` returns float32 (N, D) and is thread-safe.

    `device`: auto, cpu, cuda or an installed plug-in such as openvino; `batch_size`: images per run (None: suited to
    the device); `variant`: fp32, fp16, int8, bf16 (the fp32 graph computed in bf16, where a plug-in does) or auto (the
    bundle's fastest on the device).
    Attributes: `feature_dim` D, `image_size` S, `device` and `reason` (the one used, and why), `batch_size`, `variant`,
    `manifest`, `digest` (the encoder's name in outputs). Raises `BundleError`, `DeviceError`, `ValueError`.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        device: str = "auto",
        batch_size: int | None = None,
        variant: str = "fp32",
    ) -> None:
        opened = Bundle.open(bundle)
        session, self.variant = open_variant(opened, variant, device, batch_size)
        super().__init__(opened, session, batch_size, opened.manifest.feature_dim)
        self.feature_dim = self.dim
        self.digest = encoder_digest(opened, self.variant, self.device)

    def stream(
        self, source: ImageSource | str | os.PathLike[str] | Sequence[ImageItem]
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield (ids, features (B, D)) of a folder, an `.npz`, a source or a list of items, in order.

        Unreadable images are skipped and logged as warnings; `batches` returns them instead.
        """
        opened = open_images(source)
        for item in opened.skipped:
            _log.warning("skipped %s: %s", as_message(item.path), as_message(item.reason))
        for batch in self.batches(opened):
            for item in batch.skipped:
                _log.warning("skipped %s: %s", as_message(item.path), as_message(item.reason))
            if batch.indices:
                yield [opened.ids[i] for i in batch.indices], batch.outputs


def encoder_digest(bundle: Bundle, variant: str, device: str) -> str:
    """An encoder's name in outputs: the bundle's digest; unless fp32, also the file's name or bf16, and a plug-in's.

    With fewer bits, plug-ins round elsewhere than ONNX Runtime itself: their features are not to be mixed with its.
    """
    name = VARIANTS.get(variant, variant)
    place = f"@{device}" if is_plugin(device) else ""
    return bundle.digest if name == ENCODER else f"{bundle.digest}/{name}{place}"


def open_variant(bundle: Bundle, variant: str, device: str, batch_size: int | None) -> tuple[Session, str]:
    """A session on a precision variant, and that variant's name. Raises `ValueError` when the bundle lacks it."""
    legal = f"auto, {', '.join(VARIANTS)}, {BF16}"
    require_legal(fits(variant, "str"), "variant", variant, legal)
    held = [name for name, file in VARIANTS.items() if file in bundle.manifest.files]
    if variant == BF16:
        return open_graph(bundle, ENCODER, device, batch_size, shares_cores=True, precision=BF16), BF16
    if variant != "auto" and variant not in held:
        raise ValueError(
            f"variant is {variant!r}, but {bundle.folder} holds {', '.join(held)}; "
            f"export it again with --precision {variant}"
            if variant in VARIANTS
            else f"variant is {variant!r}; expected {legal}"
        )

    def opened(name: str, where: str) -> Session:
        return open_graph(bundle, VARIANTS[name], where, batch_size, shares_cores=True)

    if variant != "auto":
        return opened(variant, device), variant
    on_gpu = "fp16" if "fp16" in held else "fp32"
    on_cpu = "int8" if "int8" in held and fast_int8() else "fp32"
    if device == "cpu" or is_plugin(device):
        return opened(on_cpu, device), on_cpu
    session = opened(on_gpu, device)
    if session.device == "cuda" or on_cpu == on_gpu:
        return session, on_gpu
    reason = session.reason
    session = opened(on_cpu, "cpu")
    session.reason = reason
    return session, on_cpu


class ImageClassifier(Pipeline):
    """A bundle's classifier on a device: `classifier(images)` returns probabilities (N, C), columns as in `classes`.

    Raises `ValueError` for a bundle without one, `BundleError`, `DeviceError`.
    """

    def __init__(self, bundle: str | os.PathLike[str], device: str = "auto", batch_size: int | None = None) -> None:
        opened = Bundle.open(bundle)
        head = opened.manifest.classifier
        if head is None:
            raise ValueError(
                f"{printable(bundle)} holds no {CLASSIFIER}; create one: "
                "byol linear BUNDLE --train SRC --test SRC --save-classifier NEW_BUNDLE"
            )
        session = open_graph(opened, CLASSIFIER, device, batch_size, shares_cores=True)
        super().__init__(opened, session, batch_size, len(head.classes), output=1)
        self.classes = head.classes
