"""Where the names of classes go on a map: beside their points, over none, and none over another.

Shapes: M points. Lengths are pixels of a frame whose side is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LETTER, HEIGHT = 7.4, 15  # width and height of a bold letter of 12 px, with room around the text
POINT = 5  # half the room of a point
NEAR, FAR = 18, 0.35  # without a line to its class; the farthest, as a share of the side
PADDING = 0.1  # of a map around its points, in all: Bokeh's own


@dataclass(frozen=True)
class Placed:
    """A name's middle and the end of the line from its class to it, in the map's units; NaN for no line, no name."""

    x: float = np.nan
    y: float = np.nan
    end_x: float = np.nan
    end_y: float = np.nan


def midst(points: np.ndarray) -> np.ndarray:
    """The point (2,) of points (M, 2) that has the least distance to all: there, unlike at the mean, is one."""
    nearest: np.ndarray = points[np.linalg.norm(points[:, None] - points[None], axis=2).sum(1).argmin()]
    return nearest


def place_names(
    points: np.ndarray, labels: Sequence[str | None], names: Mapping[str, str], side: int
) -> dict[str, Placed]:
    """Where to write each class's short name on a map of points (M, 2) in a square frame of `side` pixels.

    The narrowest classes choose first. A class whose name fits nowhere near goes without: the legend has all.
    """
    low, high = points.min(0), points.max(0)
    unit = float((high - low).max() or 1) * (1 + PADDING) / side  # of the map in a pixel
    corner = (low + high) / 2 - unit * side / 2
    taken = np.zeros((side, side), bool)  # by row y and column x
    for x, y in ((points - corner) / unit).astype(int):
        taken[max(0, y - POINT) : y + POINT + 1, max(0, x - POINT) : x + POINT + 1] = True
    own = {name: points[[label == name for label in labels]] for name in names}
    placed = {}
    for name in sorted(own, key=lambda name: float(own[name].std(0).sum())):
        anchor = (midst(own[name]) - corner) / unit
        width = int(LETTER * len(names[name])) + 8
        middle = _nearest_room(taken, anchor, width)
        if middle is None:
            placed[name] = Placed()
            continue
        x, y = middle
        taken[y - HEIGHT // 2 : y + HEIGHT // 2 + 1, x - width // 2 : x + width // 2 + 1] = True
        half = np.array([width / 2, HEIGHT / 2])
        end = np.clip(anchor, middle - half, middle + half)
        line = end if np.linalg.norm(end - anchor) > NEAR else np.full(2, np.nan)
        placed[name] = Placed(*(corner + unit * middle).tolist(), *(corner + unit * line).tolist())
    return placed


def _nearest_room(taken: np.ndarray, anchor: np.ndarray, width: int) -> np.ndarray | None:
    """The middle (2,) int64 of the free box of the width that is nearest to the anchor; None if all are far."""
    side, tall, wide = len(taken), 2 * (HEIGHT // 2) + 1, 2 * (width // 2) + 1
    if wide > side:
        return None
    sums = np.zeros((side + 1, side + 1), np.int64)
    sums[1:, 1:] = taken.cumsum(0).cumsum(1)
    inside = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]  # by top left corner
    top, left = np.nonzero(inside == 0)
    y, x = top + tall // 2, left + wide // 2
    distance = np.hypot(
        np.maximum(abs(x - anchor[0]) - wide / 2, 0), np.maximum(abs(y - anchor[1]) - tall / 2, 0)
    ) + 0.01 * np.hypot(x - anchor[0], y - anchor[1])
    if not len(distance) or distance.min() > FAR * side:
        return None
    best = distance.argmin()
    return np.array([x[best], y[best]])
