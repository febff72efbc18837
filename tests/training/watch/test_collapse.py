"""Collapse statistics against their definitions, and the warning they give."""

import numpy as np
import pytest
import torch

from byol.training.model import Observation
from byol.training.watch.collapse import collapse_statistics, collapse_warning, rankme, singular_values, std_ratio


def test_std_ratio_is_one_on_the_sphere_and_zero_when_collapsed():
    spread = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert std_ratio(spread) == pytest.approx(1.0, abs=0.02)
    assert std_ratio(torch.ones(16, 64) * 3) == pytest.approx(0.0, abs=1e-5)
    # Its definition in float64: deviation of normalised outputs against 1 / sqrt(d).
    x = spread[:50].double().numpy() + 1.0
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert std_ratio(spread[:50] + 1.0) == pytest.approx(unit.std(axis=0, ddof=1).mean() * 8, rel=1e-5)


def test_rankme_counts_the_directions_in_use():
    assert rankme(torch.eye(16)) == pytest.approx(16, rel=1e-3)
    one = torch.outer(torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.ones(16))
    assert rankme(one) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_what_a_gpu_takes_the_rank_from_are_the_singular_values(shape, monkeypatch):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2.0 ** -torch.arange(shape[1])
    features -= features.mean(dim=0)
    expected, found = torch.linalg.svdvals(features), singular_values(features).flip(0)
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected[0]), rtol=1e-5)
    before = round(rankme(features), 4)
    monkeypatch.setattr(torch.linalg, "svdvals", singular_values)
    assert round(rankme(features), 4) == before


def observation(projection):
    return Observation(torch.randn(32, 24), projection, projection, projection, projection)


def test_warning_names_collapse_and_only_collapse():
    assert collapse_warning(collapse_statistics(observation(torch.randn(32, 16))), 32) is None
    message = collapse_warning(collapse_statistics(observation(torch.ones(32, 16) + 1e-3 * torch.randn(32, 16))), 32)
    assert message is not None
    assert message.startswith("training is collapsing: all images get nearly the same projection")


def test_a_low_rank_is_no_warning_where_the_batch_is_tiny():
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    seen = Observation(torch.randn(2, 24), pair, pair, pair, pair)  # two centred rows have rank 1, whatever they are
    statistics = collapse_statistics(seen)
    assert statistics["rankme"] < 1.5
    assert collapse_warning(statistics, 2) is None
    message = collapse_warning(statistics, 8)
    assert message is not None
    assert "a single direction" in message
