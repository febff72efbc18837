"""Activation checkpointing and TensorBoard files: the same training, in less memory or in another place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from byol.encoders.activations import recompute_blocks
from byol.images.open import open_source
from byol.training.data.decoded import load_canvases
from byol.training.trainer import Trainer
from tests.support.runs import run_training
from tests.support.small import config, folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("images"))


def test_recomputing_changes_no_number(images):
    decoded = load_canvases(open_source(images), 16)
    states = []
    for recompute in (False, True):
        trainer = Trainer(config(recompute=recompute), decoded)
        for step in range(3):
            trainer.step(step)
        states.append(trainer.model.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_recomputing_keeps_fewer_activations(images):
    decoded = load_canvases(open_source(images), 16)
    kept = []
    for recompute in (False, True):
        trainer = Trainer(config(recompute=recompute), decoded)
        sizes: list[int] = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            views = trainer.views(trainer.feed.batch(0), torch.Generator(), trainer.view_size(0))
            trainer.model(*views)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


def test_what_cannot_be_recomputed_is_refused():
    with pytest.raises(ValueError, match="no blocks to recompute"):
        recompute_blocks(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="recompute excludes compile=all"):
        config(recompute=True, compile="all")
    for arch, blocks in (("resnet18", 8), ("resnet50", 16)):
        from byol.encoders.build import build_encoder

        assert recompute_blocks(build_encoder(arch, "imagenet")) == blocks


def test_tensorboard_files_hold_the_metrics(images, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_training(config(max_steps=3), images, tmp_path / "run", tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"loss", "lr", "tau", "images_per_second", "rankme"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
