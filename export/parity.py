"""The gate: ONNX Runtime must reproduce torch before a bundle is written.

Legend: B batch, S pixels, D feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn

from byol.bundle.manifest import ENCODER, Parity
from byol.bundle.model import Model
from byol.bundle.parity import GATES, compare_features
from byol.export.graph import INPUT
from byol.serve.session import open_session

# 1 and 2 catch a batch axis that was fixed, 3 and 33 kernels that treat a remainder in a way of their own.
BATCH_SIZES = (1, 2, 3, 33)


def sample_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Picture-like inputs, uint8 (count, size, size, 3), from coarse to pixel noise; the same on every machine."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        side = max(1, size >> (number % 5))
        noise = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        images.append(np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(images)


@torch.no_grad()
def torch_features(encoder: nn.Module, images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Features (B, D) float32 of uint8 images (B, S, S, 3) by the unfused torch encoder in eval mode on the CPU."""

    def channels(values: Sequence[float]) -> Tensor:
        return torch.tensor(values)[:, None, None]

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    features: Tensor = encoder.eval()((pixels - channels(mean)) / channels(std))
    return features.numpy()


def measure(
    encoder: nn.Module,
    graph: bytes | Model,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
) -> tuple[Parity, tuple[np.ndarray, np.ndarray]]:
    """Compare ONNX Runtime with torch at every batch size; also returns (inputs, torch features) of the largest.

    Raises `ValueError` when the deviation is above the gate.
    """
    session = open_session(graph, "cpu", lambda _: {INPUT: sample_images(1, size)})
    figures = []
    for batch in batch_sizes:
        images = sample_images(batch, size, seed=batch)
        expected = torch_features(encoder, images, mean, std)
        (found,) = session.run({INPUT: images})
        figures.append(compare_features(expected, found))
    error, cosine = max(f[0] for f in figures), min(f[1] for f in figures)
    problem = GATES[ENCODER].problem(error, cosine)
    if problem:
        raise ValueError(f"export refused: ONNX Runtime does not reproduce torch: {problem}")
    provider = session.inference.get_providers()[0]
    versions = onnxruntime.__version__, "torch", torch.__version__.partition("+")[0]
    return Parity(error, cosine, sum(batch_sizes), batch_sizes, provider, *versions), (images, expected)
