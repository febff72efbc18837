"""The few-label protocol: a classifier fitted on a few labelled images of each class, over several draws.

Shapes: N samples, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from byol.serve.classifier import Classifier


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
        return float(np.std(self.top1, ddof=1)) if len(self.top1) > 1 else 0.0


def draw(labels: np.ndarray, amount: int | float, seed: int) -> np.ndarray:
    """Rows (int64) of some random images of each class: an int is their number, a float their share, at least one.

    labels (N,). The same seed gives the same rows. Raises `ValueError` when a class has fewer images than asked for.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for name in np.unique(labels):
        members = np.flatnonzero(labels == name)
        count = amount if isinstance(amount, int) else max(1, round(amount * len(members)))
        if not 1 <= count <= len(members):
            raise ValueError(f"class {name} has {len(members)} images, {amount} labelled ones were asked for")
        chosen.append(random.choice(members, count, replace=False))
    return np.concatenate(chosen)


def few_label_accuracy(
    make: Callable[[], Classifier],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    amount: int | float,
    draws: int,
) -> FewLabels:
    """Fit `make()` on `draws` random choices from train, (N, D) and (N,), and score each on all of test.

    Draw i is the same for every encoder, so that they can be compared.
    """
    x, y = train
    rows = [draw(y, amount, seed) for seed in range(draws)]
    return FewLabels(amount, len(rows[0]), tuple(make().fit(x[r], y[r]).score(*test) for r in rows))
