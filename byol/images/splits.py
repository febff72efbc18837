"""Random parts of a labelled set: a few labels, or a hold-out. Torch-free; training and serving share them.

A draw depends on labels, amount and seed only, so encoders, probes and fine-tunings are compared on the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

HOLDOUT = 0.2  # of each class


def draw(labels: np.ndarray, amount: int | float, seed: int) -> np.ndarray:
    """Rows (int64) of some random images of each class: an int is their number, a float their share, at least one.

    labels (N,). The same seed gives the same rows. Raises `ValueError` when a class has fewer images than asked for.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for name, members in _members(labels):
        count = amount if isinstance(amount, int) else max(1, round(amount * len(members)))
        if not 1 <= count <= len(members):
            raise ValueError(f"class {name} has {len(members)} images, fewer than the {amount} asked for")
        chosen.append(random.choice(members, count, replace=False))
    return np.concatenate(chosen)


def holdout(labels: np.ndarray, seed: int) -> np.ndarray:
    """A mask (N,): a fifth of each class, at least one sample where a class has two; single samples stay in the fit."""
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for _, rows in _members(labels):
        members = random.permutation(rows)
        if len(members) >= 2:
            held[members[: max(1, int(HOLDOUT * len(members)))]] = True
    return held


def _members(labels: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Each class, sorted, and its rows (int64) in their order. Labels are compared once, not once for each class."""
    names, numbers = np.unique(labels, return_inverse=True)
    order, counts = np.argsort(numbers, kind="stable"), np.bincount(numbers)
    for name, count, end in zip(names, counts, np.cumsum(counts), strict=True):
        yield name, order[end - count : end]


def describe(amount: int | float) -> str:
    """An amount of labels in words."""
    if isinstance(amount, float) and amount == 1:
        return "all"
    return f"{amount} a class" if isinstance(amount, int) else f"{amount:g} of each class"


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over draws (n - 1); 0 for a single draw."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
