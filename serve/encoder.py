"""Encoder: images in, features out.

Shapes: N images, B batch, S the encoder's image size, D features.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from byol.columns import Labels
from byol.images import ImageSource, Skipped, UnreadableImage, decode, printable, read_image, to_rgb
from byol.serve import MAX_BATCH_SIZE
from byol.serve.bundle import Bundle
from byol.serve.manifest import ENCODER, BundleError, Manifest
from byol.serve.session import Feeds, Session, open_session
from byol.sources import open_source

# The CPU gains nothing from larger batches; a GPU needs them.
BATCH_SIZES = {"cpu": 32, "cuda": 256}

ImageItem = str | os.PathLike[str] | Image.Image | np.ndarray

_log = logging.getLogger(__name__)
_lazy_images = threading.Lock()  # one Pillow image must not be loaded by two threads at once


@dataclass(frozen=True)
class Batch:
    """`indices` into the source, `features` float32 (len(indices), D), and what was left out on the way."""

    indices: list[int]
    features: np.ndarray
    skipped: list[Skipped]


class Encoder:
    """A verified bundle on a device.

    `device`: auto, cpu or cuda; `batch_size`: images per run (None: what suits the device).
    Attributes: `feature_dim` D, `image_size` S, `device` and `reason` (what is used, and why), `batch_size`,
    `manifest`, `digest` (the bundle's name in outputs). Raises `BundleError`, `DeviceError`.
    """

    def __init__(self, bundle: str | os.PathLike[str], device: str = "auto", batch_size: int | None = None) -> None:
        if batch_size is not None and not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch_size is {batch_size}; expected 1 to {MAX_BATCH_SIZE}")
        opened = Bundle.open(bundle)
        self.manifest, self.digest = opened.manifest, opened.digest
        self.feature_dim, self.image_size = opened.manifest.feature_dim, opened.manifest.image_size
        self._transform = opened.manifest.preprocess.transform()
        self._session = open_encoder_session(
            opened.read(ENCODER), opened.manifest, device, batch_size, shares_cores=True
        )
        self.device, self.reason = self._session.device, self._session.reason
        self.batch_size = batch_size or BATCH_SIZES[self.device]

    def __call__(self, images: Sequence[ImageItem] | np.ndarray) -> np.ndarray:
        """Features of paths, Pillow images or uint8 arrays (H, W, 3) of any size: float32 (N, D), in their order.

        Raises `ValueError` naming the item when one cannot be used.
        """
        source = _items_source(images)
        features = np.empty((len(source), self.feature_dim), np.float32)
        for batch in self.batches(source):
            if batch.skipped:
                raise ValueError(f"{batch.skipped[0].path}: {batch.skipped[0].reason}")
            features[batch.indices] = batch.features
        return features

    def stream(
        self, source: ImageSource | str | os.PathLike[str] | Sequence[ImageItem]
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield (ids, features (B, D)) of a folder, an `.npz`, a source or a list of items, in order.

        What cannot be read is left out and logged as a warning; `batches` hands it over instead.
        """
        opened = _open(source)
        for item in opened.skipped:
            _log.warning("skipped %s: %s", item.path, item.reason)
        for batch in self.batches(opened):
            for item in batch.skipped:
                _log.warning("skipped %s: %s", item.path, item.reason)
            if batch.indices:
                yield [opened.ids[i] for i in batch.indices], batch.features

    def batches(self, source: ImageSource, threads: int = 0) -> Iterator[Batch]:
        """Decode in `threads` threads (0: one per usable core) while earlier images are encoded.

        The last batch may hold no image, only what was skipped. Memory does not grow with the source.
        """
        pixels = np.empty((self.batch_size, self.image_size, self.image_size, 3), np.uint8)  # (B, S, S, 3)
        indices: list[int] = []
        skipped: list[Skipped] = []
        for index, result in decode(source, self._transform, threads):
            if isinstance(result, UnreadableImage):
                skipped.append(Skipped(source.ids[index], str(result)))
                continue
            pixels[len(indices)] = result
            indices.append(index)
            if len(indices) == self.batch_size:
                yield Batch(indices, self._checked(pixels, source, indices), skipped)
                indices, skipped = [], []
        if indices or skipped:
            yield Batch(indices, self._checked(pixels[: len(indices)], source, indices), skipped)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Features (B, D) float32 of images that are preprocessed already: uint8 (B, S, S, 3), B <= batch_size."""
        count = len(pixels)
        if count == 0:
            return np.empty((0, self.feature_dim), np.float32)
        if self.device == "cuda" and count < self.batch_size:  # one shape only: each new one costs CUDA a set-up
            padded = np.zeros((self.batch_size, *pixels.shape[1:]), np.uint8)
            padded[:count] = pixels
            pixels = padded
        features: np.ndarray = self._session.run({self.manifest.onnx.input: pixels})[0][:count]
        return features

    def _checked(self, pixels: np.ndarray, source: ImageSource, indices: list[int]) -> np.ndarray:
        features = self.encode(pixels)
        bad = np.flatnonzero(~np.isfinite(features).all(1))
        if len(bad):
            raise ValueError(f"the encoder's features of {source.ids[indices[bad[0]]]} are not finite; train it again")
        return features


def open_encoder_session(
    model: bytes, manifest: Manifest, device: str, batch_size: int | None = None, shares_cores: bool = False
) -> Session:
    """A session on a graph of a bundle (from `Bundle.read`), its interface checked. Raises `BundleError`."""
    size = manifest.image_size

    def warm_up(device: str) -> Feeds:
        batch = 1 if device == "cpu" else batch_size or BATCH_SIZES[device]  # CUDA prepares itself for one shape
        return {manifest.onnx.input: np.zeros((batch, size, size, 3), np.uint8)}

    session = open_session(model, device, warm_up, shares_cores)
    found = [_interface(end) for end in (*session.inference.get_inputs(), *session.inference.get_outputs())]
    wanted = [
        (manifest.onnx.input, "tensor(uint8)", [size, size, 3]),
        (manifest.onnx.output, "tensor(float)", [manifest.feature_dim]),
    ]
    if found != wanted:
        raise BundleError(f"the graph has the interface {found}, the manifest says {wanted}")
    return session


def _interface(end: Any) -> tuple[str, str, list[int]]:
    """Name, type and shape without the batch axis."""
    return end.name, end.type, list(end.shape[1:])


def _open(source: ImageSource | str | os.PathLike[str] | Sequence[ImageItem]) -> ImageSource:
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, str | os.PathLike):
        return open_source(os.fspath(source))
    return _items_source(source)


def _items_source(items: Sequence[ImageItem] | np.ndarray) -> ImageSource:
    if isinstance(items, str | os.PathLike | Image.Image):
        raise ValueError(f"expected a list of images, found one {type(items).__name__}; put it into a list")
    items = list(items)
    names = [_item_name(i, item) for i, item in enumerate(items)]
    return ImageSource("images", names, Labels.none(len(items)), [], lambda i: _open_item(items[i]))


def _item_name(index: int, item: ImageItem) -> str:
    return printable(item) if isinstance(item, str | os.PathLike) else f"image {index}"


def _open_item(item: ImageItem) -> Image.Image:
    if isinstance(item, str | os.PathLike):
        return read_image(item)
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
            raise UnreadableImage(f"expected a uint8 array (H, W, 3), found {item.dtype} {item.shape}")
        return Image.fromarray(item)
    if not isinstance(item, Image.Image):
        raise UnreadableImage(f"expected a path, a Pillow image or a uint8 array, found {type(item).__name__}")
    try:
        with _lazy_images:
            item.load()
        return to_rgb(item)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise UnreadableImage(str(error) or type(error).__name__) from error
