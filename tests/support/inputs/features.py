"""Small features files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from byol.serve.features.write import feature_file

DIM = 5


DIGEST = "ab" * 32


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def write(path: Path, count: int = 7, batch: int = 3, labels: list[str | None] | None = None) -> np.ndarray:
    x = rows(count)
    labels = [f"c{i % 2}" for i in range(count)] if labels is None else labels
    with feature_file(path, DIM, DIGEST) as put:
        for start in range(0, count, batch):
            part = slice(start, start + batch)
            put([f"a/{i}.png" for i in range(count)][part], labels[part], x[part])
    return x
