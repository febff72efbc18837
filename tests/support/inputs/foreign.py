"""Checkpoints of other toolkits, made here, and what must come of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from byol.export.foreign.toolkits import foreign_encoder
from tests.support.networks import randomise_norms


def images():
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


SIZE = 32


def resnet(seed=0, cifar=False, padding=1):
    """torchvision's own ResNet-18 with its classifier, norms as after training."""
    torch.manual_seed(seed)
    model = torchvision.models.resnet18(weights=None)
    if cifar:
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, padding, bias=False), nn.Identity()
    return randomise_norms(model, seed).eval()


@torch.no_grad()
def features(model, cut=True):
    """What the network computes before its classifier, of pictures normalised as ImageNet's."""
    model = copy.deepcopy(model)
    if cut:
        model.fc = nn.Identity()
    return model.eval()(images()).flatten(1)


def assert_same(weights, expected):
    with torch.no_grad():
        found = weights.encoder(images())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def saved(path, tensors):
    torch.save(tensors, path)
    return path


def refused(path, message, toolkit="auto", arch="resnet18", size=SIZE, **more):
    with pytest.raises(ValueError, match=message):
        foreign_encoder(path, toolkit, arch, size, **more)
