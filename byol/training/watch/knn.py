"""kNN accuracy on labelled images while training.

Legend: N bank, Q queries, S view pixels, D feature, C classes, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from byol.images.cache import DecodedCache
from byol.images.decode import Preprocess
from byol.images.labels import require_labels
from byol.images.source import ImageSource
from byol.run import KNN
from byol.training.config import TrainConfig
from byol.training.data.batches import moved, seeded
from byol.training.data.decoded import load_preprocessed, source_digest
from byol.training.data.intake import ImageTensor


def weighted_knn(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    k: int,
    temperature: float,
    own: Tensor | None = None,
    chunk: int = 1024,
) -> Tensor:
    """Predicted class (Q,) int64 of each query by weighted k-nearest neighbours.

    Cosine similarity, each neighbour's vote weighs exp(similarity / temperature) (Wu et al. 2018, arXiv 1805.01978,
    section 3.4). bank (N, D), queries (Q, D) float; labels (N,) int64. k above N means N. `own` (Q,) int64: the row of
    the bank that is the query itself, which does not count (leave one out).
    """
    k = min(k, len(bank) - (own is not None))
    bank = F.normalize(bank.float(), dim=1)
    predictions = []
    for number, part in enumerate(torch.split(queries, chunk)):
        cosine = F.normalize(part.float(), dim=1) @ bank.T  # (q, N)
        if own is not None:
            cosine.scatter_(1, own[number * chunk : number * chunk + len(part), None], -torch.inf)
        similarity, neighbours = cosine.topk(k)  # (q, K)
        # Weights relative to the nearest neighbour: the same votes, and no overflow at low temperatures.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(part), classes, device=bank.device)
        predictions.append(votes.scatter_add_(1, labels[neighbours], weights).argmax(dim=1))
    return torch.cat(predictions)


@dataclass(frozen=True)
class KNNSets:
    """Labelled bank and queries for kNN, not decoded yet; `described` says which images they are.

    Without queries, those are images of the bank, each compared with all the others (leave one out).
    """

    bank: ImageSource
    queries: ImageSource | None
    described: str

    @property
    def name(self) -> str:
        """Where the queries come from."""
        return (self.queries or self.bank).name

    @classmethod
    def choose(cls, config: TrainConfig, training: ImageSource, validation: ImageSource) -> KNNSets:
        """The bank is the training set's labelled images where they are of every class of the validation set, and it
        is another set; else the validation images themselves, each compared with the others. At most
        `config.knn_bank` images make the bank and `config.knn_queries` are queries, drawn once.

        Raises `ValueError` when a validation image has no label, and when there is nothing to measure on.
        """
        labels = require_labels(validation)
        lacking = sorted(set(validation.classes) - set(training.classes))
        if lacking:
            return cls._leave_one_out(config, validation, labels, _why_no_bank(training, lacking))
        if _same(training, validation):
            return cls._leave_one_out(config, validation, labels, "these are the training images")
        labelled = _labelled(training)
        bank = _drawn(config, labelled, "bank", config.knn_bank)
        queries = _drawn(config, validation, "queries", config.knn_queries)
        return cls(bank, queries, f"{_part(queries, validation)} validation images, {_bank(bank, labelled, training)}")

    @classmethod
    def _leave_one_out(cls, config: TrainConfig, validation: ImageSource, labels: list[str], why: str) -> KNNSets:
        if len(set(labels)) == len(labels):
            raise ValueError(f"{validation.name}: one image per class is too few for validation; give two or more")
        bank = _drawn(config, validation, "bank", config.knn_bank)
        queries = min(len(bank), config.knn_queries)
        described = f"{queries:,} of {len(bank):,} validation images, each compared with the others, as {why}"
        return cls(bank, None, described)


def _same(training: ImageSource, validation: ImageSource) -> bool:
    """Whether these are the same images, whose nearest neighbours would be themselves."""
    if len(training) != len(validation) or source_digest(training) != source_digest(validation):
        return False
    contents = [source.content and source.content() for source in (training, validation)]
    return contents[0] is not None and contents[0] == contents[1]


def _why_no_bank(training: ImageSource, lacking: list[str]) -> str:
    if not training.classes:
        return "the training images have no labels"
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return f"the training images have none of class {lacking[0]}{more}"


def _labelled(source: ImageSource) -> ImageSource:
    return source.subset(np.flatnonzero(source.labels.codes >= 0)) if len(source.labels.missing) else source


def _bank(bank: ImageSource, labelled: ImageSource, training: ImageSource) -> str:
    missing = training.labels.missing
    without = f"; {len(missing)} without a label left out, first {training.ids[missing[0]]}" if len(missing) else ""
    return f"bank: {_part(bank, labelled)} training images{without}"


def _part(some: ImageSource, whole: ImageSource) -> str:
    return f"{len(some):,}" if len(some) == len(whole) else f"{len(some):,} of {len(whole):,}"


def _drawn(config: TrainConfig, source: ImageSource, purpose: str, most: int) -> ImageSource:
    rows = _some(config, len(source), purpose, most)
    return source if len(rows) == len(source) else source.subset(rows.tolist())


def _some(config: TrainConfig, count: int, purpose: str, most: int) -> Tensor:
    """At most so many of `count` rows, int64, in order; the same ones for a seed."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=seeded("cpu", config.seed, purpose))[:most].sort().values


class KNNMonitor:
    """kNN top-1 of the encoder on labelled images, decoded on creation; `skipped` are the unreadable ones."""

    def __init__(self, config: TrainConfig, sets: KNNSets, advance: Callable[[int], None] | None = None):
        self.config = config
        self.classes = sets.bank.classes
        preprocess = Preprocess.for_size(config.image_size)
        cache = DecodedCache()
        self.bank = load_preprocessed(sets.bank, preprocess, cache, advance)
        self.bank_labels = self._numbers(sets.bank, self.bank)
        self.queries: ImageTensor | None = None
        if sets.queries is None:
            self.own = _some(config, len(self.bank), "queries", config.knn_queries)
            self.query_labels = self.bank_labels[self.own]
        else:
            self.queries = load_preprocessed(sets.queries, preprocess, cache, advance)
            self.query_labels = self._numbers(sets.queries, self.queries)
        further = self.queries.skipped if self.queries else []
        self.skipped = list(dict.fromkeys([*self.bank.skipped, *further]))

    def _numbers(self, source: ImageSource, images: ImageTensor) -> Tensor:
        number = {name: i for i, name in enumerate(self.classes)}
        return torch.tensor([number.get(label or "", -1) for label in source.labels.take(images.indices)])

    @property
    def counts(self) -> dict[str, int]:
        """How many images and classes accuracy rests on, under the keys of a line of metrics."""
        return dict(zip(KNN[1:], (len(self.bank), len(self.query_labels), len(self.classes)), strict=True))

    def measure(self, features: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Top-1, 0 to 1, and the counts; `features` maps uint8 images (N, S, S, 3) to features (N, D)."""
        bank = features(self.bank.pixels)
        own = moved(self.own, bank.device) if self.queries is None else None
        predicted = weighted_knn(
            bank,
            moved(self.bank_labels, bank.device),
            features(self.queries.pixels) if self.queries else bank[own],
            len(self.classes),
            self.config.knn_k,
            self.config.knn_temperature,
            own,
        )
        top1 = (predicted.cpu() == self.query_labels).float().mean().item()
        return {KNN[0]: round(top1, 5), **self.counts}
