"""Scores of classes for some samples: the best class, the place of the true one, accuracy per class.

Shapes: N or B samples, M classes that have a score, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CELLS = 4 << 20  # scores that are held at once: 32 MB of float64
MOST_ROWS = 8192
LAST = np.iinfo(np.int64).max  # the place of a class that cannot be a hit


@dataclass(frozen=True)
class Scores:
    """`values` float64 (B, M) of the classes `numbers` (B, M) or (1, M), which increase along a row.

    A class that is not among them has score 0. Where a row has fewer than M classes, it ends in scores of 0 for C.
    """

    values: np.ndarray
    numbers: np.ndarray

    def best(self) -> np.ndarray:
        """The number of the class with the highest score (B,); of equals the first."""
        numbers = np.broadcast_to(self.numbers, self.values.shape)
        return np.take_along_axis(numbers, self.values.argmax(1)[:, None], 1)[:, 0]

    def places(self, truth: np.ndarray) -> np.ndarray:
        """How many classes come before the true one (B,): those with a higher score, and of equals the earlier ones.

        `LAST` where its score is 0, and where `truth` is -1, no class at all.
        """
        true = truth[:, None]
        own = np.where(self.numbers == true, self.values, 0).max(1, keepdims=True)
        before = (self.values > own) | ((self.values == own) & (self.numbers < true))
        return np.where(own[:, 0] > 0, before.sum(1), LAST)

    def write(self, dense: np.ndarray) -> None:
        """Put the scores into zeros (B, C)."""
        there = self.values > 0
        numbers = np.broadcast_to(self.numbers, self.values.shape)
        dense[np.nonzero(there)[0], numbers[there]] = self.values[there]


def accuracy_per_class(truth: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes in `truth` (N,), sorted, and the accuracy of each, 0 to 1; `right` bool (N,)."""
    classes, numbers = np.unique(truth, return_inverse=True)
    return classes, np.bincount(numbers, right) / np.bincount(numbers)


def pieces(rows: int, width: int) -> Iterator[slice]:
    """Cut `rows` rows of `width` scores each into pieces that need little memory."""
    size = max(1, min(MOST_ROWS, CELLS // width))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
