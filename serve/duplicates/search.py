"""All pairs of images whose features have a cosine of a threshold or more: exact, a block of products at a time.

Rows are numbered through: first the K known images (which are not compared with one another), then the N new ones.
A block of products in float32 finds candidates, with a margin for its rounding; their cosines are then computed in
float64, and rounded to `DIGITS` decimals, since those of equal features differ in the sixteenth.

Shapes: K known, N new, D features, P pairs; I rows and J columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from byol.machine import usable_cores
from byol.serve.evaluate.knn import unit_rows
from byol.serve.limits import MOST_PAIRS

DIGITS = 9
STRIP, COLUMNS = 4096, 1024  # rows and columns of a block: 16 MB of products


@dataclass
class Found:
    """What a search knows once all rows before `next` are compared with all rows behind them.

    `leader`    int64 (N,): the first kept image, as a row, of which an image is a duplicate; -1 for one that is kept
    `twins`     int64 (N,): how many earlier images it is a near-duplicate of
    `a`, `b`    int64 (P,): the rows of pairs, a < b: for each b its first `MOST_PAIRS`; `cosine` float64 (P,)
    """

    leader: np.ndarray
    twins: np.ndarray
    a: np.ndarray
    b: np.ndarray
    cosine: np.ndarray
    next: int = 0

    @classmethod
    def nothing(cls, count: int) -> Found:
        """The beginning, for `count` new images."""
        rows, none = np.full(count, -1), np.empty(0, np.int64)
        return cls(rows, np.zeros(count, np.int64), none, none, np.empty(0))

    @property
    def pairs(self) -> int:
        """How many pairs there are, listed or not."""
        return int(self.twins.sum())

    @property
    def kept(self) -> np.ndarray:
        """Whether a new image is kept (N,): it is no near-duplicate of an earlier image that is kept."""
        kept: np.ndarray = self.leader < 0
        return kept


class Search:
    """The pairs within `new` (N, D), and between it and `known` (K, D), of a cosine of at least `threshold`."""

    def __init__(self, new: np.ndarray, known: np.ndarray | None, threshold: float) -> None:
        self._new, self._known = new, new[:0] if known is None else known
        self._first, self._threshold = len(self._known), threshold
        # Bound on the rounding of a product of D float32 numbers and of unit rows (Higham, 3.5), doubled.
        self._least = np.float32(threshold - (new.shape[1] + 16) * 2.0**-23)

    @property
    def total(self) -> int:
        """The number of comparisons."""
        count = len(self._new)
        return self._first * count + count * (count - 1) // 2

    def run(self, found: Found, advance: Callable[[int], None], pause: Callable[[Found], None]) -> None:
        """Complete `found`; `pause` is called with it after each strip of rows, when it may be saved."""
        advance(self._compared(found.next))
        with threadpool_limits(usable_cores(), "blas"):
            for start, stop in self._strips(found.next):
                self._strip(found, start, stop)
                found.next = stop
                advance(self._compared(stop) - self._compared(start))
                pause(found)

    def _strips(self, start: int) -> Iterator[tuple[int, int]]:
        """The rest of the rows in strips, each either known or new."""
        end = self._first + len(self._new)
        while start < end:
            stop = min(start + STRIP, self._first if start < self._first else end)
            yield start, stop
            start = stop

    def _compared(self, rows: int) -> int:
        """The comparisons done once the first `rows` are."""
        known, new = min(rows, self._first), max(0, rows - self._first)
        return known * len(self._new) + new * (2 * len(self._new) - new - 1) // 2

    def _strip(self, found: Found, start: int, stop: int) -> None:
        """Compare the rows of a strip with all new rows behind them, columns in their order."""
        unit, parts = unit_rows(self._rows(start, stop)), list[tuple[np.ndarray, ...]]()
        products = np.empty((STRIP, COLUMNS), np.float32)
        for left in range(max(start, self._first), self._first + len(self._new), COLUMNS):
            right = min(left + COLUMNS, self._first + len(self._new))
            rows = min(stop, right) - start  # of the strip itself no row behind the last column
            out = products[:rows, : right - left]
            near = np.matmul(unit[:rows], unit_rows(self._rows(left, right)).T, out=out) >= self._least
            if near.any() and (part := self._pairs(found, near, start, left)):
                parts.append(part)
        for name, *pieces in zip(("a", "b", "cosine"), *parts, strict=False):
            setattr(found, name, np.concatenate([getattr(found, name), *pieces]))

    def _pairs(self, found: Found, near: np.ndarray, start: int, left: int) -> tuple[np.ndarray, ...]:
        """Count the pairs among the candidates (I, J) and say who leads; returns the rows and cosines of those listed.

        `start` is the row of the first line, `left` that of the first column.
        """
        rows, columns = start + np.flatnonzero(near.any(1)), left + np.flatnonzero(near.any(0))
        cosine = np.round(self._exact(rows) @ self._exact(columns).T, DIGITS)
        is_pair = (cosine >= self._threshold) & (rows[:, None] < columns)
        places = columns - self._first
        _lead(found.leader, is_pair, rows, places, self._first)
        number = found.twins[places] + np.cumsum(is_pair, axis=0)  # of each pair among those of its column
        found.twins[places] += np.count_nonzero(is_pair, axis=0)
        line, column = np.nonzero(is_pair & (number <= MOST_PAIRS))
        return rows[line], columns[column], np.minimum(cosine[line, column], 1)

    def _rows(self, start: int, stop: int) -> np.ndarray:
        """Consecutive rows, all known or all new."""
        if start < self._first:
            return self._known[start:stop]
        return self._new[start - self._first : stop - self._first]

    def _exact(self, rows: np.ndarray) -> np.ndarray:
        """Rows of one kind, given by their numbers, as float64 of length 1; zero rows stay zero."""
        known = rows[0] < self._first
        x = (self._known[rows] if known else self._new[rows - self._first]).astype(np.float64)
        length = np.linalg.norm(x, axis=1, keepdims=True)
        unit: np.ndarray = x / np.where(length > 0, length, 1)
        return unit

    def cosines(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The exact cosines (P,) of rows a with new rows b."""
        found = np.empty(len(a))
        for known in (True, False):
            of_kind = np.flatnonzero((a < self._first) == known)
            for start in range(0, len(of_kind), COLUMNS):
                some = of_kind[start : start + COLUMNS]
                found[some] = np.einsum("pd,pd->p", self._exact(a[some]), self._exact(b[some]))
        cosines: np.ndarray = np.minimum(np.round(found, DIGITS), 1)
        return cosines


def _lead(leader: np.ndarray, is_pair: np.ndarray, rows: np.ndarray, places: np.ndarray, first: int) -> None:
    """Let each kept row, in their order, lead those of its pairs that have no leader yet.

    is_pair (I, J) of `rows` (I,) and new rows that `leader` has at `places` (J,). When a row's turn comes, all rows
    before it have had theirs, so that whether it is kept is known.
    """
    known = rows[0] < first  # then all of them are: none of these is dropped
    lines = is_pair.any(1) if known else is_pair.any(1) & (leader[rows - first] < 0)
    for line in np.flatnonzero(lines).tolist():
        row = rows[line]
        if known or leader[row - first] < 0:  # it may have got a leader since
            mine = places[is_pair[line]]
            leader[mine[leader[mine] < 0]] = row
