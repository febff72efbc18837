"""What is watched during training: kNN accuracy on labelled images, and the signs of collapse.

Legend: N bank, Q queries, B batch, D feature, P projection, C classes, K neighbours.
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
from byol.images.splits import split_halves
from byol.run import COLLAPSED_RANK, COLLAPSED_STD_RATIO
from byol.training.config import TrainConfig
from byol.training.data.batches import seeded
from byol.training.data.decoded import load_preprocessed
from byol.training.data.intake import ImageTensor
from byol.training.model import Observation

LEAST_FOR_RANK = 8  # images: the features of a few have a low rank, whatever the encoder


def weighted_knn(
    bank: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int, temperature: float, chunk: int = 1024
) -> Tensor:
    """Predicted class (Q,) int64 of each query by weighted k-nearest neighbours.

    Cosine similarity, each neighbour's vote weighs exp(similarity / temperature) (Wu et al. 2018, arXiv 1805.01978,
    section 3.4). bank (N, D), queries (Q, D) float; labels (N,) int64. k above N means N.
    """
    k = min(k, len(bank))
    bank = F.normalize(bank.float(), dim=1)
    predictions = []
    for part in torch.split(queries, chunk):
        similarity, neighbours = (F.normalize(part.float(), dim=1) @ bank.T).topk(k)  # (q, K)
        # Weights relative to the nearest neighbour: the same votes, and no overflow at low temperatures.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(part), classes, device=bank.device)
        predictions.append(votes.scatter_add_(1, labels[neighbours], weights).argmax(dim=1))
    return torch.cat(predictions)


@dataclass(frozen=True)
class KNNSets:
    """Labelled bank and queries for kNN, not decoded yet; `described` says which images they are."""

    bank: ImageSource
    queries: ImageSource
    described: str

    @classmethod
    def choose(cls, config: TrainConfig, training: ImageSource, validation: ImageSource) -> KNNSets:
        """The bank is the training set's labelled images where they are of every class of the validation set (at most
        `config.knn_bank` of them, drawn once), else every second validation image. Of the queries at most
        `config.knn_queries` are taken, drawn once as well.

        Raises `ValueError` when a validation image has no label, and when there is nothing to measure on.
        """
        labels = require_labels(validation)
        lacking = sorted(set(validation.classes) - set(training.classes))
        if lacking:
            return cls._halves(config, validation, labels, _why_halves(training, lacking))
        labelled = _labelled(training)
        bank, queries = _drawn(config, labelled, "bank", config.knn_bank), _queries(config, validation)
        return cls(bank, queries, f"{_part(queries, validation)} validation images, {_bank(bank, labelled, training)}")

    @classmethod
    def _halves(cls, config: TrainConfig, validation: ImageSource, labels: list[str], why: str) -> KNNSets:
        first, second = split_halves(labels)
        if not second:
            raise ValueError(f"{validation.name}: one image per class is too few for validation; give two or more")
        bank, queries = validation.subset(first), _queries(config, validation.subset(second))
        described = f"{_part(queries, validation)} validation images, bank: {len(bank):,} of the others, as {why}"
        return cls(bank, queries, described)


def _why_halves(training: ImageSource, lacking: list[str]) -> str:
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


def _queries(config: TrainConfig, source: ImageSource) -> ImageSource:
    return _drawn(config, source, "queries", config.knn_queries)


def _drawn(config: TrainConfig, source: ImageSource, purpose: str, most: int) -> ImageSource:
    if len(source) <= most:
        return source
    chosen = torch.randperm(len(source), generator=seeded("cpu", config.seed, purpose))[:most]
    return source.subset(sorted(chosen.tolist()))


class KNNMonitor:
    """kNN top-1 of the encoder on labelled images, decoded on creation; `skipped` are the unreadable ones."""

    def __init__(self, config: TrainConfig, sets: KNNSets, advance: Callable[[int], None] | None = None):
        self.config = config
        self.classes = sets.bank.classes
        preprocess = Preprocess.for_size(config.image_size)
        cache = DecodedCache()
        self.bank = load_preprocessed(sets.bank, preprocess, cache, advance)
        self.queries = load_preprocessed(sets.queries, preprocess, cache, advance)
        self.bank_labels = self._numbers(sets.bank, self.bank)
        self.query_labels = self._numbers(sets.queries, self.queries)
        self.skipped = list(dict.fromkeys([*self.bank.skipped, *self.queries.skipped]))

    def _numbers(self, source: ImageSource, images: ImageTensor) -> Tensor:
        number = {name: i for i, name in enumerate(self.classes)}
        return torch.tensor([number.get(label or "", -1) for label in source.labels.take(images.indices)])

    def measure(self, features: Callable[[Tensor], Tensor]) -> float:
        """Top-1, 0 to 1; `features` maps uint8 images (N, S, S, 3) to features (N, D)."""
        bank, queries = features(self.bank.pixels), features(self.queries.pixels)
        predicted = weighted_knn(
            bank,
            self.bank_labels.to(bank.device),
            queries,
            len(self.classes),
            self.config.knn_k,
            self.config.knn_temperature,
        )
        return (predicted.cpu() == self.query_labels).float().mean().item()


def std_ratio(projection: Tensor) -> float:
    """Spread of L2-normalised outputs (B, P) over the batch: mean deviation per dimension times sqrt(P).

    1 where they fill the sphere evenly, 0 where all are the same: collapse (Chen and He 2021, arXiv 2011.10566,
    section 4.1).
    """
    unit = F.normalize(projection.float(), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)


def rankme(features: Tensor) -> float:
    """Effective rank of features (B, D): exp of the entropy of their singular values (Garrido et al. 2023, eq. 1)."""
    values = torch.linalg.svdvals(features.float())
    p = values / values.sum().clamp(min=1e-12) + 1e-7
    return float((-(p * p.log()).sum()).exp())


def collapse_statistics(seen: Observation) -> dict[str, float]:
    """The keys `std_ratio` (projections), `rankme` (centred features) and `cosine` (prediction to target)."""
    features = seen.features.float()
    cosine = F.cosine_similarity(seen.prediction.float(), seen.target.float(), dim=1).mean()
    return {
        "std_ratio": std_ratio(seen.projection),
        "rankme": rankme(features - features.mean(dim=0)),
        "cosine": float(cosine),
    }


def collapse_warning(statistics: dict[str, float], images: int) -> str | None:
    """One plain sentence when the statistics of a batch of `images` show collapse, else None."""
    if statistics["std_ratio"] < COLLAPSED_STD_RATIO:
        ratio = statistics["std_ratio"]
        finding = f"all images get nearly the same projection (std_ratio {ratio:.3f}, healthy is 0.5 to 1)"
    elif statistics["rankme"] < COLLAPSED_RANK and images >= LEAST_FOR_RANK:
        finding = f"the features use a single direction (rankme {statistics['rankme']:.2f})"
    else:
        return None
    return (
        f"training is collapsing: {finding}. The loss can look fine while this happens. "
        "Check that the predictor is on, lower --lr, raise --tau, or use a larger --batch-size"
    )
