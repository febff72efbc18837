"""Weighted k-nearest-neighbour classification, the field's usual measure of an encoder without training a head.

Shapes: N bank, B queries, D features, K neighbours, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from onnx import TensorProto, helper

from byol.run import KNN_K, KNN_TEMPERATURE
from byol.serve.evaluate.classifier import Classifier
from byol.serve.evaluate.scores import Scores, pieces
from byol.serve.session import open_beside
from byol.strict_json import fits, require_legal

SIMILARITIES = 64 << 20  # similarities computed at once (256 MB)
MAX_QUERIES = 1024
BANK_ROWS = SIMILARITIES // MAX_QUERIES  # of a bank that are compared at once


class KNNClassifier(Classifier):
    """Weighted kNN by cosine similarity (Wu et al. 2018, arXiv 1805.01978, section 3.4).

    Each of the `k` nearest neighbours votes for its class with weight exp(similarity / `temperature`). A bank smaller
    than `k` is used whole, with a warning; `k_` says how many neighbours vote. Ties: of equally similar neighbours the
    earlier one in the bank is nearer; of classes with equal votes the first in `classes_` wins. A zero vector
    has similarity 0 to everything. Learned: `classes_`, `n_features_in_`, `k_`, `device_`, `reason_`.
    """

    def __init__(self, k: int = KNN_K, temperature: float = KNN_TEMPERATURE, device: str = "auto") -> None:
        self.k, self.temperature, self.device = k, temperature, device

    def fit(self, x: ArrayLike, y: ArrayLike) -> Self:
        """Keep the bank, (N, D) with labels (N,). Raises `ValueError` for unusable input."""
        require_legal(fits(self.k, "int") and self.k >= 1, "k", self.k, "a whole number of at least 1")
        _require_temperature(self.temperature)
        bank, self._numbers = self._learn_classes(x, y)
        self.k_ = min(self.k, len(bank))
        if self.k_ < self.k:
            warnings.warn(f"k is {self.k}, but the bank has {len(bank)} samples: all of them vote", stacklevel=2)
        self._neighbours = Neighbours(bank, self.k_, self.device)
        self.device_, self.reason_ = self._neighbours.device, self._neighbours.reason
        return self

    def kneighbors(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarities (B, K), best first, and the neighbours' rows in the bank (B, K)."""
        queries = self._checked(x)
        return self._neighbours(queries)

    def predict_left_out(self, x: ArrayLike, rows: np.ndarray) -> np.ndarray:
        """The labels (B,) of some rows (B,) of the bank, whose features x (B, D) are, each by `k` - 1 of the others."""
        similarity, neighbours = self._neighbours(self._checked(x))
        similarity, neighbours = without(similarity, neighbours, neighbours == rows[:, None])
        best = [scores.best() for scores in self._shares(similarity, neighbours, self.temperature)]
        labels: np.ndarray = self.classes_[np.concatenate(best)]
        return labels

    def predict_proba(self, x: ArrayLike) -> np.ndarray:
        """The classes' shares of the votes (N, C) float64, columns in the order of `classes_`."""
        features, start = self._checked(x), 0
        dense = np.zeros((len(features), len(self.classes_)))
        for scores in self._scored(features):
            scores.write(dense[start : start + len(scores.values)])
            start += len(scores.values)
        return dense

    def _scored(self, features: np.ndarray) -> Iterator[Scores]:
        return self._shares(*self._neighbours(features), self.temperature)

    def _shares(self, similarity: np.ndarray, neighbours: np.ndarray, temperature: float) -> Iterator[Scores]:
        """The classes' shares of the votes of neighbours (B, K): the first K' columns are kNN with K'."""
        _require_temperature(temperature)
        for rows in pieces(*similarity.shape):
            near = similarity[rows].astype(np.float64)
            # Relative to the nearest neighbour, so that no temperature overflows; the shares stay the same. A vote that
            # vanishes beside the nearest still is one.
            weights = np.maximum(np.exp((near - near[:, :1]) / temperature), np.finfo(np.float64).tiny)
            yield _counted(self._numbers[neighbours[rows]], weights, len(self.classes_))

    def sweep(
        self,
        x: ArrayLike,
        y: ArrayLike,
        ks: Sequence[int],
        temperatures: Sequence[float],
        leave_one_out: bool = False,
    ) -> list[tuple[int, float, float, float]]:
        """(k, temperature, top-1, top-5) of every pair, from one search; each k at most the classifier's own.

        `leave_one_out`: the queries are the bank, each compared with all the others; then k is at most one less.
        """
        features, truth = self._checked_pair(x, y)
        similarity, neighbours = self._neighbours(features)
        if leave_one_out:
            own = neighbours == np.arange(len(neighbours))[:, None]
            similarity, neighbours = without(similarity, neighbours, own)
        results = []
        for k, temperature in product(ks, temperatures):
            places = self._places(self._shares(similarity[:, :k], neighbours[:, :k], temperature), truth)
            top1, top5 = (float((places < best).mean()) for best in (1, 5))
            results.append((min(k, similarity.shape[1]), temperature, top1, top5))
        return results

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; a fitted classifier then names the device it runs on here."""
        self.__dict__.update(state)
        if "_neighbours" in state:
            self.device_, self.reason_ = self._neighbours.device, self._neighbours.reason


def without(
    similarity: np.ndarray, neighbours: np.ndarray, own: np.ndarray, most: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and neighbours (B, K - most) without those of a mask (B, K) that has at most `most` in a row.

    Where fewer are masked (among many twins, a query may be missing from its own neighbours), the last ones go instead.
    """
    kept = np.argsort(own, axis=1, kind="stable")[:, : own.shape[1] - most]
    return np.take_along_axis(similarity, kept, 1), np.take_along_axis(neighbours, kept, 1)


def _counted(numbers: np.ndarray, weights: np.ndarray, classes: int) -> Scores:
    """The shares of classes in the votes of neighbours: their classes' numbers (B, K) and their weights (B, K).

    At most K classes get votes: where there are more, a row counts its own only.
    """
    all_classes = np.arange(classes)[None]
    columns, named = _own_classes(numbers, classes) if classes > numbers.shape[1] else (numbers, all_classes)
    width = named.shape[1]
    cells = columns + width * np.arange(len(columns))[:, None]
    votes = np.bincount(cells.ravel(), weights.ravel(), width * len(columns)).reshape(-1, width)  # in their order
    return Scores(votes / votes.sum(1, keepdims=True), named)


def _own_classes(numbers: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """For each neighbour its class's column (B, K), and the columns' classes (B, K), increasing; `classes` for none."""
    order = np.argsort(numbers, axis=1)
    ranked = np.take_along_axis(numbers, order, 1)
    column = np.cumsum(np.diff(ranked, axis=1, prepend=ranked[:, :1]) != 0, axis=1)
    columns, named = np.empty_like(order), np.full(numbers.shape, classes)
    np.put_along_axis(columns, order, column, 1)
    np.put_along_axis(named, column, ranked, 1)
    return columns, named


def _require_temperature(temperature: float) -> None:
    is_legal = fits(temperature, "float") and 0 < temperature < np.inf
    require_legal(is_legal, "temperature", temperature, "a positive number")


class Neighbours:
    """The `k` nearest rows of a bank (N, D) by cosine similarity, exactly. `device` and `reason`: what computes.

    The bank is compared in pieces, normalised one at a time, so a bank of any size needs little memory beside itself; a
    bank of one piece stays on the device. `is_unit`: its rows are normalised already, which saves that at each call.
    """

    def __init__(self, bank: np.ndarray, k: int, device: str, is_unit: bool = False) -> None:
        self._bank, self._k, self._asked, self._is_unit = bank, k, device, is_unit
        self._rows = max(k, min(len(bank), BANK_ROWS))
        self._queries = max(1, min(MAX_QUERIES, SIMILARITIES // self._rows))
        one = np.array([1], np.int64)
        warm_up = {"queries": bank[:1], "bank": bank[:1], "k": one}
        self._session = open_beside(_graph(bank.shape[1]), device, lambda _: warm_up)
        self.device, self.reason = self._session.device, self._session.reason
        self._resident = self._session.on_device(self._unit(bank)) if self._rows >= len(bank) else None

    def __call__(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Similarities float32 (B, K), best first, and rows int64 (B, K); of equals the earlier row first."""
        unit = unit_rows(queries)
        best = np.empty((len(unit), 0), np.float32), np.empty((len(unit), 0), np.int64)
        for start in range(0, len(self._bank), self._rows):
            piece = self._bank[start : start + self._rows]
            similarity, rows = self._nearest(piece, unit)
            best = _merged(best, (similarity, rows + start), self._k)
        return best

    def __reduce__(self) -> tuple[type[Neighbours], tuple[np.ndarray, int, str, bool]]:
        """Pickle without the session; unpickling opens it again."""
        return Neighbours, (self._bank, self._k, self._asked, self._is_unit)

    def _unit(self, piece: np.ndarray) -> np.ndarray:
        return piece if self._is_unit else unit_rows(piece)

    def _nearest(self, piece: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = np.array([min(self._k, len(piece))], np.int64)
        bank = self._resident or self._session.on_device(self._unit(piece))
        chunks = _chunks(queries, self._queries)
        parts = [self._session.run({"k": count, "bank": bank, "queries": chunk}) for chunk in chunks]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _merged(
    best: tuple[np.ndarray, np.ndarray], more: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of two sorted lists; of equals the first list's."""
    if not best[0].shape[1]:
        return more
    similarity, rows = (np.concatenate(pair, axis=1) for pair in zip(best, more, strict=True))
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(rows, order, 1)


def _graph(dim: int) -> bytes:
    """Inputs queries (B, D), bank (N, D), k (1,); outputs similarity and neighbours (B, k)."""
    nodes = [
        helper.make_node("Gemm", ["queries", "bank"], ["cosine"], transB=1),  # (B, N)
        helper.make_node("TopK", ["cosine", "k"], ["similarity", "neighbours"], axis=1, largest=1, sorted=1),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("queries", TensorProto.FLOAT, ["B", dim]),
        value("bank", TensorProto.FLOAT, ["N", dim]),
        value("k", TensorProto.INT64, [1]),
    ]
    outputs = [
        value("similarity", TensorProto.FLOAT, ["B", "K"]),
        value("neighbours", TensorProto.INT64, ["B", "K"]),
    ]
    graph = helper.make_graph(nodes, "knn", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def _chunks(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[start : start + size] for start in range(0, len(x), size)]


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; zero rows stay zero. Scaled first, so that squares neither overflow nor vanish."""
    largest = np.abs(x).max(1, keepdims=True)
    scaled = x / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.ascontiguousarray(scaled / np.where(length > 0, length, 1), np.float32)
