"""Weighted k-nearest-neighbour classification, the field's usual measure of an encoder without training a head.

Shapes: N bank, B queries, D features, K neighbours, C classes.
"""

from __future__ import annotations

import warnings
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from onnx import TensorProto, helper

from byol.serve.classifier import Classifier
from byol.serve.session import Session, open_session

SIMILARITIES = 64 << 20  # similarities computed at once (256 MB)
MAX_QUERIES = 1024


class KNNClassifier(Classifier):
    """Weighted kNN by cosine similarity (Wu et al. 2018, arXiv 1805.01978, section 3.4).

    Each of the `k` nearest neighbours votes for its class with weight exp(similarity / `temperature`). A bank smaller
    than `k` is used whole, with a warning; `k_` says how many neighbours vote. Ties: of equally similar neighbours the
    earlier one in the bank is nearer; of classes with equal votes the first in `classes_` wins. A zero vector
    has similarity 0 to everything. Learned: `classes_`, `n_features_in_`, `k_`, `device_`, `reason_`.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07, device: str = "auto") -> None:
        self.k, self.temperature, self.device = k, temperature, device

    def fit(self, x: ArrayLike, y: ArrayLike) -> Self:
        """Keep the bank, (N, D) with labels (N,), on the device. Raises `ValueError` for unusable input."""
        if self.k < 1:
            raise ValueError(f"k is {self.k}; expected at least 1")
        if not (0 < self.temperature < np.inf):
            raise ValueError(f"temperature is {self.temperature}; expected a positive number")
        bank, self._numbers = self._learn_classes(x, y)
        self.k_ = min(self.k, len(bank))
        if self.k_ < self.k:
            warnings.warn(f"k is {self.k}, but the bank has {len(bank)} samples: all of them vote", stacklevel=2)
        self._chunk = max(1, min(MAX_QUERIES, SIMILARITIES // len(bank)))
        self._session = _session(_unit_rows(bank), self.k_, self.device)
        self.device_, self.reason_ = self._session.device, self._session.reason
        return self

    def kneighbors(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarities (B, K), best first, and the neighbours' rows in the bank (B, K)."""
        queries = _unit_rows(self._checked(x))
        chunks = [self._session.run({"queries": part}) for part in _chunks(queries, self._chunk)]
        return np.concatenate([c[0] for c in chunks]), np.concatenate([c[1] for c in chunks])

    def predict_proba(self, x: ArrayLike) -> np.ndarray:
        """The classes' shares of the votes (B, C) float64."""
        similarity, neighbours = self.kneighbors(x)
        # Relative to the nearest neighbour, so that no temperature overflows; the shares stay the same.
        exponent = (similarity.astype(np.float64) - similarity[:, :1]) / self.temperature
        votes = np.zeros((len(similarity), len(self.classes_)))
        rows = np.arange(len(votes))[:, None]
        np.add.at(votes, (rows, self._numbers[neighbours]), np.exp(exponent))
        shares: np.ndarray = votes / votes.sum(1, keepdims=True)
        return shares


def _session(bank: np.ndarray, k: int, device: str) -> Session:
    count, dim = bank.shape
    nodes = [
        helper.make_node("Gemm", ["queries", "bank"], ["cosine"], transB=1),  # (B, N)
        helper.make_node("TopK", ["cosine", "k"], ["similarity", "neighbours"], axis=1, largest=1, sorted=1),
    ]
    graph = helper.make_graph(
        nodes,
        "knn",
        [
            helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["B", dim]),
            helper.make_tensor_value_info("bank", TensorProto.FLOAT, [count, dim]),
        ],
        [
            helper.make_tensor_value_info("similarity", TensorProto.FLOAT, ["B", k]),
            helper.make_tensor_value_info("neighbours", TensorProto.INT64, ["B", k]),
        ],
        [helper.make_tensor("k", TensorProto.INT64, [1], [k])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    warm_up = {"queries": bank[:1], "bank": bank}
    session = open_session(model.SerializeToString(), device, lambda _: warm_up)
    session.keep("bank", bank)
    return session


def _chunks(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[start : start + size] for start in range(0, len(x), size)]


def _unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; zero rows stay zero. Scaled first, so that squares neither overflow nor vanish."""
    largest = np.abs(x).max(1, keepdims=True)
    scaled = x / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.ascontiguousarray(scaled / np.where(length > 0, length, 1), np.float32)
