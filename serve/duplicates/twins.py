"""Whether test images have twins in training, looked at on as many as costs next to nothing beside an evaluation.

Shapes: N training images, T test images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from byol.serve.evaluate.knn import unit_rows
from byol.serve.limits import THRESHOLD

PRODUCTS = 2 * 10**10  # multiplications that are always allowed: 0.2 s on two cores
LEAST, MOST, SHARE = 200, 2000, 50  # test images: at least, at most, and one in 50 whatever it costs
WARNED = 0.005  # of the test images
COMMON = 0.01  # of the training images: with so many twins the features are all alike, the images need not be
PIECE = 4096  # images of either set compared at a time: 64 MB of cosines


@dataclass(frozen=True)
class Twins:
    """Of the `looked` test images that were compared with all training images, `having` have a twin there."""

    looked: int
    having: int

    @property
    def many(self) -> bool:
        """Whether that is worth a warning."""
        return self.having > WARNED * self.looked


def twins_in_training(train: np.ndarray, test: np.ndarray) -> Twins:
    """Compare test features (T, D), evenly spread over all where they are many, with training features (N, D)."""
    cheap = PRODUCTS // max(1, train.size)
    count = min(len(test), max(LEAST, min(MOST, len(test) // SHARE), cheap))
    shown = unit_rows(test[np.linspace(0, len(test) - 1, count, dtype=int)])
    twins = np.zeros(count, np.int64)
    for start in range(0, len(train), PIECE):
        bank = unit_rows(train[start : start + PIECE]).T
        for first in range(0, count, PIECE):
            near = shown[first : first + PIECE] @ bank >= THRESHOLD
            twins[first : first + PIECE] += np.count_nonzero(near, axis=1)
    having = twins[twins > 0]
    if len(having) and np.median(having) > 1 + COMMON * len(train):
        return Twins(count, 0)
    return Twins(count, len(having))
