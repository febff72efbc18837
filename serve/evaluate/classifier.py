"""What the two classifiers share: scikit-learn's conventions, input checks, top-k accuracy.

scikit-learn is not needed; where installed, it accepts the classifiers as its own (docs/protocols.md).

Shapes: N samples, D features, C classes.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from byol.images.labels import require_classes
from byol.serve.evaluate.scores import Scores, accuracy_per_class
from byol.strict_json import fits, require_legal


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
    def _scored(self, features: np.ndarray) -> Iterator[Scores]:
        """Scores that rank the classes, of checked features (N, D), a few rows at a time."""

    @abstractmethod
    def predict_proba(self, x: ArrayLike) -> np.ndarray:
        """Shares (N, C) float64 that sum to 1 in each row, columns in the order of `classes_`."""

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The label with the highest score (N,); on a tie the first in `classes_`."""
        best = self._best(self._checked(x))
        labels: np.ndarray = self.classes_[best]
        return labels

    def score(self, x: ArrayLike, y: ArrayLike) -> float:
        """The share of samples whose predicted label is right, 0 to 1."""
        return self.top_k_scores(x, y, ks=(1,))[0]

    def top_k_scores(self, x: ArrayLike, y: ArrayLike, ks: tuple[int, ...] = (1, 5)) -> list[float]:
        """For each k the share of samples whose label is among the k best (k is cut to C), 0 to 1.

        A class with score 0 (no neighbour voted for it) is never a hit; on a tie the first in `classes_` is better.
        A label absent from training counts as wrong.
        """
        is_legal = isinstance(ks, Sequence | np.ndarray) and all(fits(k, "int") for k in ks)
        require_legal(is_legal, "ks", ks, "whole numbers, such as (1, 5)")
        features, truth = self._checked_pair(x, y)
        places = self._places(self._scored(features), truth)
        return [float((places < k).mean()) for k in ks]

    def measure(self, x: ArrayLike, y: ArrayLike) -> dict[str, float]:
        """`top1` and `top5` as `top_k_scores`, and `mean_per_class`: the mean of the accuracies of the classes in y."""
        features, truth = self._checked_pair(x, y)
        places = self._places(self._scored(features), truth)
        top1, top5 = (float((places < k).mean()) for k in (1, 5))
        _, per_class = accuracy_per_class(truth, places == 0)
        return {"top1": top1, "top5": top5, "mean_per_class": float(per_class.mean())}

    def confusion(self, x: ArrayLike, y: ArrayLike) -> np.ndarray:
        """How many samples of each class (row) got each label (column), int64 (C, C), both as in `classes_`.

        Raises `ValueError` for a label absent from training.
        """
        features, truth = self._checked_pair(x, y)
        if (truth < 0).any():
            raise ValueError(f"the test set has a class that training lacks: {np.asarray(y)[truth < 0][0]}")
        predicted = self._best(features)
        counts = np.zeros((len(self.classes_), len(self.classes_)), np.int64)
        np.add.at(counts, (truth, predicted), 1)
        return counts

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name; none is an estimator, so `deep` changes nothing."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change settings; what was learned stays until the next `fit`. Raises `ValueError` for an unknown one."""
        legal = self.get_params()
        for name in params:
            if name not in legal:
                raise ValueError(f"{type(self).__name__} has no setting {name!r}; expected {', '.join(legal)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def __sklearn_tags__(self) -> Any:
        """The estimator tags that scikit-learn asks for; nobody else calls this."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags())

    def _best(self, features: np.ndarray) -> np.ndarray:
        """The number of the class with the highest score (N,)."""
        return np.concatenate([scores.best() for scores in self._scored(features)])

    @staticmethod
    def _places(scored: Iterator[Scores], truth: np.ndarray) -> np.ndarray:
        """How many classes score better than the true one (N,), see `Scores.places`."""
        places, start = np.empty(len(truth), np.int64), 0
        for scores in scored:
            rows = slice(start, start + len(scores.values))
            places[rows], start = scores.places(truth[rows]), rows.stop
        return places

    def _learn_classes(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """The checked features and the class number of each label; sets the attributes."""
        features = _features(x)
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        labels = require_classes(y, len(features))
        if labels.dtype.kind == "f" and (labels != np.floor(labels)).any():
            raise ValueError(
                "Unknown label type: y holds numbers that are not whole; a class is a name or a whole number"
            )
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class only ({self.classes_[0]}); at least two are needed")
        self.n_features_in_ = features.shape[1]
        return features, numbers

    def _checked(self, x: ArrayLike) -> np.ndarray:
        if not hasattr(self, "classes_"):
            raise _not_fitted()(f"this {type(self).__name__} is not fitted; call fit(x, y) first")
        features = _features(x)
        if features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {features.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input: those of the training set"
            )
        return features

    def _checked_pair(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, D) and class numbers (N,)."""
        features = self._checked(x)
        return features, self._encode(y, len(features))

    def _encode(self, y: ArrayLike, count: int) -> np.ndarray:
        """Class numbers (N,); -1 for a label that is not in `classes_`."""
        labels = require_classes(y, count)
        numbers = {label: i for i, label in enumerate(self.classes_.tolist())}
        return np.array([numbers.get(label, -1) for label in labels.tolist()])


def _not_fitted() -> type[ValueError]:
    """scikit-learn's own error (a ValueError) where it is loaded: its tools look for it."""
    exceptions = sys.modules.get("sklearn.exceptions")
    return getattr(exceptions, "NotFittedError", ValueError)


def _features(x: ArrayLike) -> np.ndarray:
    if hasattr(x, "toarray"):
        raise ValueError("x is sparse, features are dense; pass x.toarray()")
    features = np.asarray(x)
    if features.ndim == 1:
        raise ValueError("x must have shape (N, D). Reshape your data: one sample is x.reshape(1, -1)")
    if features.ndim != 2 or 0 in features.shape:
        what = f"{features.shape[-1] if features.ndim else 0} feature(s) (shape={features.shape})"
        raise ValueError(
            f"x must have shape (N, D) with at least one row and column, found {what} while a minimum of 1 is required."
        )
    if features.dtype.kind == "c":
        raise ValueError("Complex data not supported: x must hold real numbers")
    try:
        features = np.ascontiguousarray(features, np.float32)
    except (TypeError, ValueError) as error:  # scikit-learn's tools know the two apart
        raise type(error)(f"x holds values that are not numbers: {error}") from error
    for start in range(0, len(features), 8192):  # a mask of some rows only
        if not np.isfinite(features[start : start + 8192]).all():
            raise ValueError("x holds values that are not finite (NaN or inf, or beyond float32)")
    return features
