"""The few-label protocol: a classifier fitted on a few labelled images of each class, over several draws.

Shapes: N samples, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from byol.images.splits import deviation, draw
from byol.serve.evaluate.classifier import Classifier


@dataclass(frozen=True)
class FewLabels:
    """Test accuracies (0 to 1) of classifiers fitted on `images` labelled images, one for each draw."""

    amount: int | float
    images: int
    top1: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy over the draws."""
        return float(np.mean(self.top1))

    @property
    def deviation(self) -> float:
        """Standard deviation over the draws (n - 1); 0 for a single draw."""
        return deviation(self.top1)


def few_label_accuracy(
    make: Callable[[], Classifier],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    amount: int | float,
    draws: int,
) -> FewLabels:
    """Fit `make()` on `draws` random choices from train, (N, D) and (N,), and score each on all of test.

    Draw i is the same for every encoder, so results are comparable.
    """
    x, y = train
    rows = [draw(y, amount, seed) for seed in range(draws)]
    return FewLabels(amount, len(rows[0]), tuple(make().fit(x[r], y[r]).score(*test) for r in rows))
