"""Training images as uint8 tensors, and the order in which an epoch visits them.

Legend: N images, M canvas pixels, S view pixels.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from byol.images import ImageSource, Preprocess, Skipped, UnreadableImage, decode


@dataclass(frozen=True)
class ImageTensor:
    """Decoded images.

    `pixels`  uint8 (N, M, M, 3)
    `aspect`  float32 (N,) width / height of the original: a canvas holds the whole picture, stretched to a square,
              and the crop of a view undoes the stretching
    `indices` where each row stands in its source (rows of unreadable images are absent)
    `skipped` the unreadable images
    """

    pixels: Tensor
    aspect: Tensor
    indices: list[int]
    skipped: list[Skipped]

    def __len__(self) -> int:
        return len(self.indices)


def load_canvases(source: ImageSource, canvas: int, advance: Callable[[int], None] | None = None) -> ImageTensor:
    """Decode every image of a source, whole, to a canvas x canvas square for random cropping."""

    def squeeze(image: Image.Image) -> tuple[np.ndarray, float]:
        size = (canvas, canvas)
        square = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(square), image.width / image.height

    return _load(source, canvas, squeeze, advance)


def load_evaluation(source: ImageSource, preprocess: Preprocess) -> ImageTensor:
    """Decode every image of a source exactly as serving does: resized and centre-cropped."""
    return _load(source, preprocess.crop, lambda image: (preprocess(image), 1.0), None)


def _load(
    source: ImageSource,
    side: int,
    transform: Callable[[Image.Image], tuple[np.ndarray, float]],
    advance: Callable[[int], None] | None,
) -> ImageTensor:
    pixels = np.empty((len(source), side, side, 3), dtype=np.uint8)
    aspect: list[float] = []
    indices: list[int] = []
    skipped = list(source.skipped)
    for index, result in decode(source, transform):
        if isinstance(result, UnreadableImage):
            skipped.append(Skipped(source.ids[index], str(result)))
        else:
            pixels[len(indices)] = result[0]
            aspect.append(result[1])
            indices.append(index)
        if advance is not None:
            advance(1)
    if not indices:
        reasons = "".join(f"\n  {item.path}: {item.reason}" for item in skipped[:5])
        raise ValueError(f"{source.name}: none of its {len(source)} images can be read{reasons}")
    return ImageTensor(torch.from_numpy(pixels[: len(indices)]), torch.tensor(aspect), indices, skipped)


def canvas_side(source: ImageSource, image_size: int, probes: int = 64) -> int:
    """A canvas that keeps the detail a view can show: 8/7 of the view, but no more than the images have.

    Looks at `probes` images spread over the source.
    """
    wanted = -(-image_size * 8 // 7 // 8) * 8  # rounded up to a multiple of 8
    sides = []
    for index in np.linspace(0, len(source) - 1, min(probes, len(source)), dtype=int):
        try:
            sides.append(max(source.open(int(index)).size))
        except UnreadableImage:
            continue
    return min(wanted, max(sides, default=wanted))


def source_digest(source: ImageSource) -> str:
    """A digest of the list of images: tells whether a resumed run sees the same data."""
    return hashlib.sha256("\n".join(source.ids).encode()).hexdigest()[:16]


def seeded(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator that is a function of its key: the same numbers whenever and wherever a step is computed."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return generator


def batch_rows(seed: int, step: int, images: int, batch_size: int) -> Tensor:
    """The rows (batch_size,) of optimizer step `step`: each epoch is a shuffle of its own, its rest dropped."""
    epoch, place = divmod(step, images // batch_size)
    return _epoch_order(seed, epoch, images)[place * batch_size : (place + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    return torch.randperm(images, generator=seeded("cpu", seed, "order", epoch))


def split_halves(labels: Sequence[str]) -> tuple[list[int], list[int]]:
    """Two halves with the same class proportions: every class's images in turn to the first and the second."""
    counts: dict[str, int] = {}
    halves: tuple[list[int], list[int]] = ([], [])
    for index, label in enumerate(labels):
        counts[label] = counts.get(label, -1) + 1
        halves[counts[label] % 2].append(index)
    return halves
