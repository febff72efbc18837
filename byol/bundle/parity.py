"""How far one graph may be from another: the measure, and its gates.

Shapes: N images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from byol.bundle.manifest import ANY_SIZE, CLASSIFIER, ENCODER, VARIANTS


@dataclass(frozen=True)
class Gate:
    """How far outputs may be from what they must reproduce (see `compare_features`)."""

    max_relative_error: float
    min_cosine: float

    def problem(self, error: float, cosine: float) -> str | None:
        """What is beyond the gate, in words; None when nothing is."""
        if error <= self.max_relative_error and cosine >= self.min_cosine:
            return None
        limit = f" (at most {self.max_relative_error:g})" if self.max_relative_error < float("inf") else ""
        return f"relative error {error:.3g}{limit}, cosine {cosine:.7f} (at least {self.min_cosine})"


BF16 = "bf16"  # the fp32 encoder, computed in bf16 by a provider that can: a precision without a file of its own

# fp32 normally differs by 1e-6. Fewer bits and another resampling turn features a little; only their angle is bounded.
GATES = {
    ENCODER: Gate(1e-4, 0.99999),
    CLASSIFIER: Gate(1e-3, 0.99999),  # weights of features that hardly vary multiply their rounding
    ANY_SIZE: Gate(float("inf"), 0.999),
    VARIANTS["fp16"]: Gate(float("inf"), 0.999),
    VARIANTS["int8"]: Gate(float("inf"), 0.99),
    BF16: Gate(float("inf"), 0.999),
}


def compare_features(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """(largest relative error, smallest cosine) of `found` against `expected`, both (N, D), in float64.

    The error of a row is max |found - expected| / max |expected|, so it does not depend on the features' scale.
    A value that is not finite counts as infinite error and cosine -1. Raises `ValueError` when the shapes differ.
    """
    if expected.shape != found.shape or expected.ndim != 2 or expected.size == 0:
        raise ValueError(f"features must have equal shapes (N, D), found {expected.shape} and {found.shape}")
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf"), -1.0
    tiny = np.finfo(np.float64).tiny
    with np.errstate(over="ignore"):  # a row of zeros and anything else: infinite
        error = np.abs(b - a).max(1) / np.maximum(np.abs(a).max(1), tiny)  # (N,)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.where(error == 0, 1.0, (a * b).sum(1) / np.maximum(norms, tiny))  # equal zero rows agree
    return float(error.max()), float(cosine.min())
