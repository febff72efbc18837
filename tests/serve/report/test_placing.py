"""Names on a map: over no point, over no other name, each near its class or left out."""

from __future__ import annotations

import numpy as np
import pytest

from byol.serve.report.placing import FAR, HEIGHT, LETTER, PADDING, midst, place_names


def clusters(spread: float, count: int = 8, each: int = 40) -> tuple[np.ndarray, list[str | None]]:
    generator = np.random.default_rng(0)
    angles = np.arange(count) * 2 * np.pi / count
    middles = np.repeat(np.c_[np.cos(angles), np.sin(angles)], each, 0)
    labels: list[str | None] = [f"class number {i // each}" for i in range(count * each)]
    return middles + generator.normal(0, spread, middles.shape), labels


@pytest.mark.parametrize("side", [280, 400, 560])
@pytest.mark.parametrize("spread", [0.02, 0.1, 0.4, 3.0])
def test_names_hide_neither_points_nor_each_other(spread: float, side: int) -> None:
    points, labels = clusters(spread)
    names = {str(name): f"number {name[-1]}" for name in set(labels) if name}
    placed = place_names(points, labels, names, side)
    assert placed.keys() == names.keys()
    span = (points.max(0) - points.min(0)).max() * (1 + PADDING)
    pixels = points / span * side
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    for name, at in placed.items():
        middle = np.array([at.x, at.y]) / span * side
        if np.isnan(middle).any():
            continue
        half = np.array([LETTER * len(names[name]) / 2, HEIGHT / 2])
        assert not (abs(pixels - middle) < half).all(1).any()
        assert all((abs(middle - other) > half + size - 0.5).any() for other, size in boxes)
        anchor = midst(points[[label == name for label in labels]]) / span * side
        assert (abs(middle - anchor) <= half + FAR * side + 2).all()
        boxes.append((middle, half))
    if spread < 0.2:
        assert len(boxes) == len(names)  # where there is room, all are named


def test_a_far_name_has_a_line_to_its_class_and_a_near_one_has_none() -> None:
    tight, labels = clusters(0.02, count=2)
    placed = place_names(tight, labels, {"class number 0": "a", "class number 1": "b"}, 400)
    assert np.isnan([at.end_x for at in placed.values()]).all()
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 12), np.linspace(0, 1, 12)), -1).reshape(-1, 2)  # no room inside
    placed = place_names(np.r_[grid, [[1.5, 0.5]]], ["a"] * 144 + ["b"], {"a": "aaaaaaaaaaaaa", "b": "b"}, 280)
    assert np.isfinite(placed["a"].end_x) == np.isfinite(placed["a"].x)


def test_little_data_is_no_trouble() -> None:
    one = place_names(np.zeros((1, 2)), ["a"], {"a": "a"}, 280)
    assert np.isfinite(one["a"].x)
    assert np.isnan(place_names(np.zeros((1, 2)), ["a"], {"a": "a" * 50}, 280)["a"].x)  # wider than the map
