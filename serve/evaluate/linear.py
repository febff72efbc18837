"""Linear probe: multinomial logistic regression on frozen features, L-BFGS over an ONNX graph.

Shapes: N samples, D features, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from byol.images.splits import holdout
from byol.serve.evaluate.classifier import Classifier
from byol.serve.evaluate.objective import Objective
from byol.serve.evaluate.principal_axes import rotate
from byol.serve.evaluate.scores import Scores, pieces
from byol.strict_json import fits, require_legal

# From strong to weak, each fit starting from the one before: the strong ones take a few iterations only.
L2_GRID = tuple(10.0**e for e in range(1, -7, -1))
# Used when no class has two samples, so that nothing can be held out: strong, as so few samples need.
L2_WITHOUT_HOLDOUT = 1e-2

# The largest gradient entry, and the relative gain of an iteration, at which L-BFGS stops. The graph is float32, so the
# mean loss is known to about 1e-8: asked for more, the line search fails after many evaluations and gains nothing.
GRADIENT_TOLERANCE = 1e-6
LOSS_TOLERANCE = 1e-8

# Iterations after which a fit that began at equal probabilities measures the curvature again: by then it is another.
LOOK_AGAIN = 25
LEAST_CURVATURE = 1e-7  # where a class is next to certain, or never seen
USED_UP = 1  # SciPy's status of a fit that was stopped by `maxiter`


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
        self._require_legal()
        features, numbers = self._learn_classes(x, y)
        held = holdout(numbers, self.seed) if isinstance(self.l2, str) else np.zeros(len(numbers), bool)
        order = np.argsort(held, kind="stable")  # held out samples last, so that neither part is a copy
        rotated, numbers, fitted = rotate(features, order), numbers[order], int((~held).sum())
        self.holdout_: dict[float, float] = {}
        self.l2_ = self._choose_l2(rotated.x, numbers, fitted) if isinstance(self.l2, str) else float(self.l2)
        objective = Objective(rotated.x, numbers, len(self.classes_), self.device)
        self.device_, self.reason_ = objective.device, objective.reason
        parameters = self._minimise(objective, self.l2_, objective.zeros())
        self.coef_, self.intercept_ = rotated.coefficients(*objective.split(parameters))  # (C, D), (C,)
        self.mean_ = rotated.mean
        return self

    def _require_legal(self) -> None:
        """Raise `ValueError` for a setting that cannot be used."""
        is_l2 = self.l2 == "auto" if isinstance(self.l2, str) else fits(self.l2, "float") and 0 < self.l2 < np.inf
        require_legal(is_l2, "l2", self.l2, "'auto' or a positive number")
        is_count = fits(self.max_iter, "int") and self.max_iter >= 0
        require_legal(is_count, "max_iter", self.max_iter, "a whole number of 0 or more")
        is_seed = self.seed is None or (fits(self.seed, "int") and self.seed >= 0)
        require_legal(is_seed, "seed", self.seed, "a whole number of 0 or more")

    def decision_function(self, x: ArrayLike) -> np.ndarray:
        """Logits (N, C) float64; of two classes, as scikit-learn has it, the second's minus the first's (N,)."""
        features = self._checked(x)
        logits = np.empty((len(features), len(self.classes_)))
        for rows in pieces(*logits.shape):
            logits[rows] = self._logits(features[rows])
        return logits if logits.shape[1] > 2 else logits[:, 1] - logits[:, 0]

    def _logits(self, features: np.ndarray) -> np.ndarray:
        logits: np.ndarray = features.astype(np.float64) @ self.coef_.T + self.intercept_
        return logits

    def predict_proba(self, x: ArrayLike) -> np.ndarray:
        """Probabilities (N, C) float64, columns in the order of `classes_`."""
        features = self._checked(x)
        probabilities = np.empty((len(features), len(self.classes_)))
        for rows in pieces(*probabilities.shape):
            probabilities[rows] = softmax(self._logits(features[rows]), axis=1)
        return probabilities

    def _scored(self, features: np.ndarray) -> Iterator[Scores]:
        """Logits, moved to 1 and above: probabilities rank alike, but vanish where logits lie far apart."""
        classes = len(self.classes_)
        for rows in pieces(len(features), classes):
            logits = self._logits(features[rows])
            yield Scores(logits - logits.min(1, keepdims=True) + 1, np.arange(classes)[None])

    def _choose_l2(self, x: np.ndarray, y: np.ndarray, fitted: int) -> float:
        """The strength that, fitted on the first rows, does best on the others."""
        held, truth = x[fitted:], y[fitted:]
        if not len(held):
            return L2_WITHOUT_HOLDOUT
        objective = Objective(x[:fitted], y[:fitted], len(self.classes_), self.device)
        parameters = objective.zeros()
        results: list[tuple[float, float, float]] = []  # (accuracy, -log-loss, l2): the largest is best
        for l2 in L2_GRID:
            parameters = self._minimise(objective, l2, parameters)
            weight, bias = objective.split(parameters)
            results.append((*_measured(held, truth, weight.astype(np.float32), bias), l2))
            self.holdout_[l2] = results[-1][0]
            if _past_the_best(results):
                break
        return max(results)[2]

    def _minimise(self, objective: Objective, l2: float, start: np.ndarray) -> np.ndarray:
        """Minimise from `start`, by L-BFGS in units in which the loss curves about equally in all directions.

        The features lie along principal axes, so that the Hessian's diagonal says most of it. Without such units an
        encoder's features, whose variances lie orders of magnitude apart, take several times the steps.
        """
        parameters: np.ndarray = start
        self.n_iter_ = 0
        look_again = 0 if start.any() else min(LOOK_AGAIN, self.max_iter)
        for limit in filter(None, (look_again, self.max_iter - look_again)):
            unit = np.sqrt(np.maximum(objective.curvature(parameters, l2), LEAST_CURVATURE))

            def scaled(point: np.ndarray, unit: np.ndarray = unit) -> tuple[float, np.ndarray]:
                loss, gradient = objective(point / unit, l2)
                return loss, gradient / unit

            options = {"maxiter": limit, "gtol": GRADIENT_TOLERANCE, "ftol": LOSS_TOLERANCE}
            with threadpool_limits(1, "blas"):  # threads still awake after tiny products would hold up the session's
                result = minimize(scaled, parameters * unit, jac=True, method="L-BFGS-B", options=options)
            parameters = result.x / unit
            self.n_iter_ += int(result.nit)
            if result.status != USED_UP:  # a line search that stops at float32's resolution is fine
                break
        else:
            warnings.warn(f"the linear probe did not converge in {self.max_iter} iterations (l2 {l2:g})", stacklevel=3)
        return parameters


def _measured(x: np.ndarray, truth: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[float, float]:
    """Accuracy and mean log-likelihood of a fit on other samples x (N, D) with class numbers `truth` (N,)."""
    right, likelihood = np.empty(len(x), bool), np.empty(len(x))
    for rows in pieces(len(x), len(bias)):
        p = softmax(x[rows] @ weight.T + bias, axis=1)  # (n, C)
        right[rows] = p.argmax(1) == truth[rows]
        likelihood[rows] = np.maximum(p[np.arange(len(p)), truth[rows]], np.finfo(np.float64).tiny)
    return float(right.mean()), float(np.log(likelihood).mean())


def _past_the_best(results: list[tuple[float, float, float]]) -> bool:
    """Whether the last two did worse than the earlier best in accuracy and log-loss: weaker penalties overfit."""
    if len(results) < 3:
        return False
    best = max(results[:-2])
    return all(accuracy < best[0] and likelihood < best[1] for accuracy, likelihood, _ in results[-2:])
