"""What is watched while training: kNN accuracy on labelled images, and the signs of collapse.

Legend: N bank, Q queries, B batch, D feature, P projection, C classes, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from byol.cache import DecodedCache
from byol.config import TrainConfig
from byol.data import ImageTensor, load_evaluation
from byol.images import ImageSource, Preprocess, require_labels
from byol.model import Observation
from byol.order import seeded, split_halves
from byol.run_format import COLLAPSED_RANK, COLLAPSED_STD_RATIO

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


class KNNMonitor:
    """kNN top-1 of the encoder on labelled validation images.

    The bank is the training set where it has labels for every class of the validation set (at most
    `config.knn_bank` images of it, drawn once), else every second validation image. Of the queries at most
    `config.knn_queries` are taken, drawn once as well.
    """

    def __init__(
        self,
        config: TrainConfig,
        training: ImageSource,
        validation: ImageSource,
        advance: Callable[[int], None] | None = None,
    ):
        labels = require_labels(validation)
        if not len(training.labels.missing) and set(training.classes) >= set(validation.classes):
            bank, queries = self._drawn(config, training, "bank", config.knn_bank), validation
        else:
            first, second = split_halves(labels)
            if not second:
                raise ValueError(f"{validation.name}: one image per class is too few for validation, give two or more")
            bank, queries = validation.subset(first), validation.subset(second)
        queries = self._drawn(config, queries, "queries", config.knn_queries)
        self.config = config
        self.classes = bank.classes
        preprocess = Preprocess.for_size(config.image_size)
        cache = DecodedCache()
        self.bank = load_evaluation(bank, preprocess, cache, advance)
        self.queries = load_evaluation(queries, preprocess, cache, advance)
        self.bank_labels = self._numbers(bank, self.bank)
        self.query_labels = self._numbers(queries, self.queries)

    @staticmethod
    def _drawn(config: TrainConfig, source: ImageSource, purpose: str, most: int) -> ImageSource:
        if len(source) <= most:
            return source
        chosen = torch.randperm(len(source), generator=seeded("cpu", config.seed, purpose))[:most]
        return source.subset(sorted(chosen.tolist()))

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
    """One plain sentence when the statistics of a batch of `images` say that training is collapsing, else None."""
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
