"""What the two classifiers share: scikit-learn's conventions, input checks, top-k accuracy.

Shapes: N samples, D features, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from byol.labels import require_classes


class Classifier(ABC):
    """Fit on features and labels, then predict. Learned: `classes_` (C,) sorted, `n_features_in_`,
    `device_` and `reason_` (what ran the graphs, and why)."""

    classes_: np.ndarray
    n_features_in_: int
    device_: str
    reason_: str

    @abstractmethod
    def fit(self, x: ArrayLike, y: ArrayLike) -> Self:
        """Learn from features (N, D) and labels (N,). Raises `ValueError` for unusable input."""

    @abstractmethod
    def predict_proba(self, x: ArrayLike) -> np.ndarray:
        """Scores (N, C) that sum to 1 in each row, columns in the order of `classes_`."""

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The label with the highest score (N,); on a tie the first in `classes_`."""
        scores = self.predict_proba(x)
        labels: np.ndarray = self.classes_[scores.argmax(1)]
        return labels

    def score(self, x: ArrayLike, y: ArrayLike) -> float:
        """The share of samples whose predicted label is right, 0 to 1."""
        return self.top_k_scores(x, y, ks=(1,))[0]

    def top_k_scores(self, x: ArrayLike, y: ArrayLike, ks: tuple[int, ...] = (1, 5)) -> list[float]:
        """For each k the share of samples whose label is among the k best (k is cut to C), 0 to 1.

        A class with score 0 (no neighbour voted for it) is never a hit; on a tie the first in `classes_` is better.
        A label that training did not have counts as wrong.
        """
        scores = self.predict_proba(x)
        return [top_k_accuracy(scores, self._encode(y, len(scores)), k) for k in ks]

    def measure(self, x: ArrayLike, y: ArrayLike) -> dict[str, float]:
        """`top1` and `top5` as `top_k_scores`, and `mean_per_class`: the mean of the accuracies of the classes in y."""
        scores = self.predict_proba(x)
        truth = self._encode(y, len(scores))
        right = scores.argmax(1) == truth
        top1, top5 = (top_k_accuracy(scores, truth, k) for k in (1, 5))
        per_class = [right[truth == number].mean() for number in np.unique(truth)]
        return {"top1": top1, "top5": top5, "mean_per_class": float(np.mean(per_class))}

    def confusion(self, x: ArrayLike, y: ArrayLike) -> np.ndarray:
        """How many samples of each class (row) got each label (column), int64 (C, C), both as in `classes_`.

        Raises `ValueError` for a label that training did not have.
        """
        predicted = self.predict_proba(x).argmax(1)
        truth = self._encode(y, len(predicted))
        if (truth < 0).any():
            raise ValueError(f"the test set has a class that training lacks: {np.asarray(y)[truth < 0][0]}")
        counts = np.zeros((len(self.classes_), len(self.classes_)), np.int64)
        np.add.at(counts, (truth, predicted), 1)
        return counts

    def _learn_classes(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """The checked features and the class number of each label; sets the attributes."""
        features = _features(x)
        self.classes_, numbers = np.unique(require_classes(y, len(features)), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class only ({self.classes_[0]}); at least two are needed")
        self.n_features_in_ = features.shape[1]
        return features, numbers

    def _checked(self, x: ArrayLike) -> np.ndarray:
        if not hasattr(self, "classes_"):
            raise ValueError(f"this {type(self).__name__} is not fitted; call fit(x, y) first")
        features = _features(x)
        if features.shape[1] != self.n_features_in_:
            raise ValueError(f"x has {features.shape[1]} features, the training set had {self.n_features_in_}")
        return features

    def _encode(self, y: ArrayLike, count: int) -> np.ndarray:
        """Class numbers (N,); -1 for a label that is not in `classes_`."""
        labels = require_classes(y, count)
        numbers = {label: i for i, label in enumerate(self.classes_.tolist())}
        return np.array([numbers.get(label, -1) for label in labels.tolist()])


def top_k_accuracy(scores: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of rows of `scores` (N, C) whose true class `truth` (N,) has a positive score among the k highest."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # (N, k)
    hits = (order == truth[:, None]) & (np.take_along_axis(scores, order, 1) > 0)
    return float(hits.any(1).mean())


def _features(x: ArrayLike) -> np.ndarray:
    features = np.asarray(x)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"x must have shape (N, D) with at least one row and column, found {features.shape}")
    try:
        features = np.ascontiguousarray(features, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"x holds values that are no numbers: {error}") from error
    for start in range(0, len(features), 8192):  # a mask of some rows only
        if not np.isfinite(features[start : start + 8192]).all():
            raise ValueError("x holds values that are not finite")
    return features
