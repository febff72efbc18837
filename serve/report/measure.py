"""How good an encoder is on labelled images: kNN for several k, linear probe, few labels, confusion.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from byol.bundle.measured import BASELINES
from byol.run import KNN_K, KNN_TEMPERATURE
from byol.serve.evaluate.baselines import chance
from byol.serve.evaluate.few_labels import FewLabels, few_label_accuracy
from byol.serve.evaluate.knn import KNNClassifier
from byol.serve.evaluate.linear import LinearProbe
from byol.serve.evaluate.sets import Evaluation
from byol.text import on_one_line, told_apart

KS = (1, 2, 5, 10, 20, 50, 100, 200)
LABELS_PER_CLASS, DRAWS = (1, 2, 5, 10, 20, 50, 100), 5
MOST_FEW_LABELS = 10_000  # images in a draw: more are neither few nor quick


@dataclass(frozen=True)
class Row:
    """The usual accuracies, 0 to 1, of an encoder or of what it is measured beside: kNN, linear probe, few labels."""

    knn: float
    linear: float
    few: FewLabels | None = None

    @property
    def cells(self) -> list[str]:
        """The three in percent for people, a dash for what was not measured."""
        few = f"{100 * self.few.mean:.1f} \u00b1 {100 * self.few.deviation:.1f}" if self.few else "\u2013"
        return [f"{100 * self.knn:.1f}", f"{100 * self.linear:.1f}", few]


@dataclass(frozen=True)
class Scores:
    """Test accuracies, 0 to 1, of one encoder.

    `knn` maps k to top-1; `linear` is the probe's top-1 on all labels; `few` holds the draws with few labels;
    `confusion` int64 (C, C) counts test images by class (row) and by what the probe takes them for (column). `one_set`:
    train and test are the same images; kNN then compares each with all the others, the probe has learned from them.
    """

    n_train: int
    n_test: int
    knn: dict[int, float]
    linear: float
    few: list[FewLabels]
    classes: list[str]
    confusion: np.ndarray
    one_set: bool = False

    @property
    def usual_k(self) -> int:
        """20, or what a smaller training set has."""
        return min(KNN_K, self.n_train - self.one_set)

    @property
    def knn_usual(self) -> float:
        """kNN top-1 with the usual k."""
        return self.knn[self.usual_k]

    @property
    def row(self) -> Row:
        """The usual three figures."""
        return Row(self.knn_usual, self.linear, next((few for few in self.few if few.amount == 1), None))


def measure(data: Evaluation, device: str) -> Scores:
    """All scores of labelled features."""
    train, test = (data.train.x, data.y_train), (data.test.x, data.y_test)
    ks = sorted({k for k in KS if k <= data.bank} | {min(KNN_K, data.bank)})
    probe = LinearProbe(device=device).fit(*train)
    amounts = few_amounts(data.y_train)
    few = [few_label_accuracy(lambda: LinearProbe(device=device), train, test, amount, DRAWS) for amount in amounts]
    confusion = probe.confusion(*test)
    return Scores(
        n_train=len(data.train),
        n_test=len(data.test),
        knn=_knn(data, ks, device),
        linear=float(np.trace(confusion) / confusion.sum()),
        few=few,
        classes=list(shown_names(map(str, probe.classes_)).values()),
        confusion=confusion,
        one_set=data.one_set,
    )


def _knn(data: Evaluation, ks: Sequence[int], device: str) -> dict[int, float]:
    """Top-1 by k, each at most the bank; of one set, each image by the others, as in `byol knn`."""
    classifier = KNNClassifier(max(ks) + data.one_set, KNN_TEMPERATURE, device).fit(data.train.x, data.y_train)
    swept = classifier.sweep(data.test.x, data.y_test, ks, [KNN_TEMPERATURE], data.one_set)
    return {k: top1 for k, _, top1, _ in swept}


def measure_baselines(data: Evaluation, device: str) -> dict[str, Row]:
    """The usual figures of what stands beside an encoder, by the names for people; and of chance."""
    rows = {BASELINES[name]: _row(other, device) for name, other in data.baselines.items()}
    return {**rows, "chance": Row(chance(data), chance(data))}


def _row(data: Evaluation, device: str) -> Row:
    train, test = (data.train.x, data.y_train), (data.test.x, data.y_test)
    one = 1 in few_amounts(data.y_train)
    few = few_label_accuracy(lambda: LinearProbe(device=device), train, test, 1, DRAWS) if one else None
    (knn,) = _knn(data, [min(KNN_K, data.bank)], device).values()
    return Row(knn, LinearProbe(device=device).fit(*train).score(*test), few)


def shown_names(classes: Iterable[str]) -> dict[str, str]:
    """What a page calls each class: its name on one line, with a number where another one reads alike."""
    names = sorted(set(classes))
    return dict(zip(names, told_apart(map(on_one_line, names)), strict=True))


def few_amounts(labels: np.ndarray) -> list[int]:
    """How many labels per class to draw: fewer than the smallest class of the training labels (N,) has."""
    counts = np.unique(labels, return_counts=True)[1]
    return [n for n in LABELS_PER_CLASS if n < counts.min() and n * len(counts) <= MOST_FEW_LABELS]
