"""Features in the coordinates of their principal axes, in which a linear probe converges in few steps.

Shapes: N samples, D features, R = min(N, D) axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

ROWS = 2048  # float64 copies of this many samples only
NOISE = 1e-12  # of the largest eigenvalue: what rounding leaves of one that is zero


@dataclass(frozen=True)
class Rotated:
    """Standardised features as `x` (N, R) float32, and the way back: standardised = x @ axes^T."""

    x: np.ndarray
    axes: np.ndarray  # (D, R) float64, orthonormal columns
    mean: np.ndarray  # (D,) float64, of the features
    scale: np.ndarray  # (D,) float64, their deviation; 1 where it is zero

    def coefficients(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (C, D) and biases (C,) for the features as they were, of weights (C, R) and biases for `x`."""
        raw: np.ndarray = weight @ self.axes.T / self.scale
        return raw, bias - raw @ self.mean


def rotate(features: np.ndarray, order: np.ndarray) -> Rotated:
    """Standardise features (N, D), samples in the `order` (N,) given, and turn them to their principal axes.

    With fewer samples than features, only the axes that the samples span are kept: by the representer theorem, the
    optimum of a fit with an L2 penalty has no weight outside.
    """
    mean, scale = _moments(features)
    samples, dim = features.shape
    x = np.empty((samples, dim), np.float32)
    for rows in _chunks(samples):
        x[rows] = (features[order[rows]] - mean) / scale
    if samples < dim:
        exact = x.astype(np.float64)
        squares, directions = eigh(exact @ exact.T, overwrite_a=True, check_finite=False)  # (N,), (N, N)
        kept = squares >= NOISE * squares[-1]  # the largest always, were it zero
        lengths = np.sqrt(np.maximum(squares[kept], np.finfo(np.float32).tiny))
        axes = exact.T @ directions[:, kept] / lengths
        return Rotated((directions[:, kept] * lengths).astype(np.float32), axes, mean, scale)
    covariance = np.zeros((dim, dim))
    for rows in _chunks(samples):
        covariance += x[rows].T @ x[rows]
    _, axes = eigh(covariance / samples, overwrite_a=True, check_finite=False)
    turn = axes.astype(np.float32)
    for rows in _chunks(samples):
        x[rows] = x[rows] @ turn
    return Rotated(x, axes, mean, scale)


def _chunks(samples: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, samples, ROWS)]


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) in float64; the deviation of a constant feature is taken as 1."""
    mean = x.mean(0, dtype=np.float64)
    variance = np.zeros(x.shape[1])
    for rows in _chunks(len(x)):
        centred = x[rows] - mean
        variance += np.einsum("nd,nd->d", centred, centred)
    deviation = np.sqrt(variance / len(x))
    constant = deviation <= 1e-6 * np.abs(mean)  # what rounding alone makes of equal float32 values
    return mean, np.where(constant | (deviation == 0), 1.0, deviation)
