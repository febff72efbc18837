"""Random parts of a labelled set: the rows of a draw are what they always were, however classes are found."""

from __future__ import annotations

import numpy as np
import pytest

from byol.images.splits import HOLDOUT, draw, holdout


def drawn_class_by_class(labels: np.ndarray, amount: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    chosen = []
    for name in np.unique(labels):
        members = np.flatnonzero(labels == name)
        count = amount if isinstance(amount, int) else max(1, round(amount * len(members)))
        chosen.append(random.choice(members, count, replace=False))
    return np.concatenate(chosen)


def held_class_by_class(labels: np.ndarray, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for name in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == name))
        if len(members) >= 2:
            held[members[: max(1, int(HOLDOUT * len(members)))]] = True
    return held


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_those_of_one_comparison_for_each_class(seed: int) -> None:
    numbers = np.r_[np.random.default_rng(seed).integers(0, 9, 200), np.repeat(np.arange(12), 2), 99]
    for labels in (numbers, np.array([f"class {number}" for number in numbers]), numbers % 2 == 0, numbers[:1]):
        for amount in (1, 0.3, 1.0):
            np.testing.assert_array_equal(draw(labels, amount, seed), drawn_class_by_class(labels, amount, seed))
        np.testing.assert_array_equal(holdout(labels, seed), held_class_by_class(labels, seed))


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(ValueError, match="class owl has 1 images, fewer than the 2 asked for"):
        draw(np.array(["cat", "owl", "cat"]), 2, seed=0)
    assert holdout(np.zeros(0, int), seed=0).tolist() == []
