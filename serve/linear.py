"""Linear probe: multinomial logistic regression on frozen features, L-BFGS over an ONNX graph.

Shapes: N samples, D features, C classes.
"""

from __future__ import annotations

import warnings
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import softmax

from byol.draws import holdout
from byol.serve.classifier import Classifier
from byol.serve.objective import Objective

# From strong to weak, each fit starting from the one before: the strong ones take a few iterations only.
L2_GRID = tuple(10.0**e for e in range(1, -7, -1))
# Used when no class has two samples, so that nothing can be held out: strong, as so few samples need.
L2_WITHOUT_HOLDOUT = 1e-2

# The largest gradient entry, and the relative gain of an iteration, at which L-BFGS stops. The graph is float32, so the
# mean loss is known to about 1e-8: asked for more, the line search fails after many evaluations and gains nothing.
GRADIENT_TOLERANCE = 1e-6
LOSS_TOLERANCE = 1e-8


class LinearProbe(Classifier):
    """Softmax regression on standardised features; minimises mean cross-entropy + `l2 / 2 |W|^2` (bias free).

    `l2` "auto": chosen by accuracy (ties: log-loss) on a stratified fifth of the TRAINING set, then refitted on all of
    it. Learned: `coef_` (C, D) and `intercept_` (C,) for raw features, `mean_` (D,) of the training set, `classes_`,
    `l2_`, `n_iter_`, `device_`, `reason_`, `n_features_in_`, and `holdout_` (l2 -> accuracy; empty when nothing was
    held out).
    """

    def __init__(self, l2: float | str = "auto", device: str = "auto", max_iter: int = 1000, seed: int = 0) -> None:
        self.l2, self.device, self.max_iter, self.seed = l2, device, max_iter, seed

    def fit(self, x: ArrayLike, y: ArrayLike) -> Self:
        """Fit on features (N, D) and labels (N,). Raises `ValueError` for unusable input."""
        if isinstance(self.l2, str) and self.l2 != "auto":
            raise ValueError(f"l2 is {self.l2!r}; expected 'auto' or a positive number")
        if not isinstance(self.l2, str) and not (0 < self.l2 < np.inf):
            raise ValueError(f"l2 is {self.l2}; expected 'auto' or a positive number")
        features, numbers = self._learn_classes(x, y)
        mean, scale = _moments(features)  # (D,), (D,)
        standard = ((features - mean) / scale).astype(np.float32)
        self.holdout_: dict[float, float] = {}
        self.l2_ = self._choose_l2(standard, numbers) if isinstance(self.l2, str) else float(self.l2)
        objective = Objective(standard, numbers, len(self.classes_), self.device)
        self.device_, self.reason_ = objective.device, objective.reason
        parameters = self._minimise(objective, self.l2_, np.zeros(len(self.classes_) * (features.shape[1] + 1)))
        weight, bias = objective.split(parameters)
        self.coef_ = weight / scale  # (C, D)
        self.intercept_ = bias - self.coef_ @ mean  # (C,)
        self.mean_ = mean
        return self

    def decision_function(self, x: ArrayLike) -> np.ndarray:
        """Logits (N, C) float64."""
        features = self._checked(x)
        logits = np.empty((len(features), len(self.classes_)))
        for start in range(0, len(features), 8192):  # float64 copies of a few rows only
            rows = slice(start, start + 8192)
            logits[rows] = features[rows].astype(np.float64) @ self.coef_.T + self.intercept_
        return logits

    def predict_proba(self, x: ArrayLike) -> np.ndarray:
        """Probabilities (N, C) float64."""
        probabilities: np.ndarray = softmax(self.decision_function(x), axis=1)
        return probabilities

    def _choose_l2(self, x: np.ndarray, y: np.ndarray) -> float:
        held = holdout(y, self.seed)
        if not held.any():
            return L2_WITHOUT_HOLDOUT
        objective = Objective(x[~held], y[~held], len(self.classes_), self.device)
        parameters = np.zeros(len(self.classes_) * (x.shape[1] + 1))
        results: list[tuple[float, float, float]] = []  # (accuracy, -log-loss, l2): the largest is best
        for l2 in L2_GRID:
            parameters = self._minimise(objective, l2, parameters)
            weight, bias = objective.split(parameters)
            p = softmax(x[held] @ weight.astype(np.float32).T + bias, axis=1)
            truth = np.maximum(p[np.arange(len(p)), y[held]], np.finfo(np.float64).tiny)
            results.append((float((p.argmax(1) == y[held]).mean()), float(np.log(truth).mean()), l2))
            self.holdout_[l2] = results[-1][0]
            if _past_the_best(results):
                break
        return max(results)[2]

    def _minimise(self, objective: Objective, l2: float, start: np.ndarray) -> np.ndarray:
        result = minimize(
            objective,
            start,
            args=(l2,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.max_iter, "gtol": GRADIENT_TOLERANCE, "ftol": LOSS_TOLERANCE},
        )
        self.n_iter_ = int(result.nit)
        if result.status == 1:  # iterations used up; a line search that stops at float32's resolution is fine
            warnings.warn(f"the linear probe did not converge in {self.max_iter} iterations (l2 {l2:g})", stacklevel=3)
        parameters: np.ndarray = result.x
        return parameters


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) in float64; the deviation of a constant feature is taken as 1."""
    mean = x.mean(0, dtype=np.float64)
    variance = np.zeros(x.shape[1])
    for start in range(0, len(x), 8192):
        variance += ((x[start : start + 8192] - mean) ** 2).sum(0)
    deviation = np.sqrt(variance / len(x))
    constant = deviation <= 1e-6 * np.abs(mean)  # what rounding alone makes of equal float32 values
    return mean, np.where(constant | (deviation == 0), 1.0, deviation)


def _past_the_best(results: list[tuple[float, float, float]]) -> bool:
    """Whether the last two were worse than the best before in accuracy and log-loss: weaker ones overfit."""
    if len(results) < 3:
        return False
    best = max(results[:-2])
    return all(accuracy < best[0] and likelihood < best[1] for accuracy, likelihood, _ in results[-2:])
