"""Networks with random weights, and norms that do something."""

from __future__ import annotations

import torch
from torch import nn


def randomise_norms(module, seed=0):
    """Batch-norm statistics as after training: without this, folding would be the identity and prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.copy_(0.1 * torch.randn(m.num_features, generator=generator))
            m.running_var.copy_(0.5 + torch.rand(m.num_features, generator=generator))
            m.weight.data.copy_(0.5 + torch.rand(m.num_features, generator=generator))
            m.bias.data.copy_(0.1 * torch.randn(m.num_features, generator=generator))
    return module
