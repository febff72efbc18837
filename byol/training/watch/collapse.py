"""The signs of collapse in a batch: all images getting the same projection, or features along one direction.

Legend: B batch, D feature, P projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from byol.run import COLLAPSED_RANK, COLLAPSED_STD_RATIO
from byol.training.model import Observation

LEAST_FOR_RANK = 8  # images: the features of a few have a low rank, whatever the encoder


def std_ratio(projection: Tensor) -> float:
    """Spread of L2-normalised outputs (B, P) over the batch: mean deviation per dimension times sqrt(P).

    1 where they fill the sphere evenly, 0 where all are the same: collapse (Chen and He 2021, arXiv 2011.10566,
    section 4.1).
    """
    unit = F.normalize(projection.float(), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)


def rankme(features: Tensor) -> float:
    """Effective rank of features (B, D): exp of the entropy of their singular values (Garrido et al. 2023, eq. 1)."""
    features = features.float()
    values = singular_values(features) if features.device.type == "cuda" else torch.linalg.svdvals(features)
    p = values / values.sum().clamp(min=1e-12) + 1e-7
    return float((-(p * p.log()).sum()).exp())


def singular_values(features: Tensor) -> Tensor:
    """Of (B, D), float32 in ascending order, from the smaller Gram matrix: what a GPU has done soonest.

    In float64, as squares take half of the digits.
    """
    wide = features.double() if len(features) <= features.shape[1] else features.double().T
    squares: Tensor = torch.linalg.eigvalsh(wide @ wide.T)
    return squares.clamp(min=0).sqrt().float()


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
