"""What only a GPU can show: `pytest -m cuda` on a machine that has one; skipped elsewhere."""

import numpy as np
import pytest
import torch

from byol.bundle.folder import Bundle
from byol.bundle.parity import GATES, compare_features
from byol.export.additions import Additions
from byol.export.exporter import export_bundle
from byol.images.open import open_source
from byol.serve import Encoder, KNNClassifier, LinearProbe
from byol.serve.pipeline import open_graph
from byol.training.checkpoint import read_checkpoint
from byol.training.data.batches import FetchedFeed, Order, ResidentFeed, open_feed
from byol.training.data.decoded import load_canvases
from byol.training.loop import fit
from byol.training.run_folder import RunFolder
from byol.training.trainer import Trainer
from tests.support.runs import run_training
from tests.support.small import config, folder

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda")
    folder(path / "train", per_class=40)
    settings = config(device="auto", precision="auto", compile="all", epochs=1)
    run_training(settings, path / "train", path / "run", path / "train")
    additions = Additions(("fp16", "int8"), any_size=True, calibrate=path / "train")
    export_bundle(path / "run", path / "bundle", additions)
    return path


def test_auto_trains_on_cuda_in_bf16_compiled_where_it_pays_and_the_checkpoint_loads_anywhere(work):
    settings = config(device="auto", precision="auto", max_steps=10**6)
    trainer = Trainer(settings, load_canvases(open_source(work / "train"), 16))
    assert (trainer.device.type, trainer.compiled) == ("cuda", "all")
    checkpoint = read_checkpoint(work / "run" / "last.safetensors")
    assert all(value.device.type == "cpu" for value in checkpoint.tensors.values())
    trainer.load(checkpoint)


@pytest.mark.parametrize("settings", [{"optimizer": "lars"}, {"optimizer": "sgd"}, {"accumulate": 2}])
def test_a_step_never_waits_for_the_gpu(work, settings):
    images = load_canvases(open_source(work / "train"), 16)
    trainer = Trainer(config(device="cuda", precision="bf16", compile="none", **settings), images)
    for step in range(3):
        trainer.step(step)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        trainer.step(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "lr": 1e-3}, {"optimizer": "lars"}])
def test_a_run_continues_from_what_the_thread_wrote(work, tmp_path, changes):
    settings = config(device="cuda", precision="fp32", compile="none", checkpoint_every=1, **changes)
    images = load_canvases(open_source(work / "train"), 16)
    with Trainer(settings, images) as trainer:
        run = RunFolder(tmp_path)
        fit(trainer, run, {"name": "x", "images": len(images), "digest": "0"})
        after = trainer.state(trainer.plan.total, {}).tensors
        stored = read_checkpoint(run.last)
        again = Trainer(settings, images)
        again.load(stored)
        found = again.state(stored.step, {}).tensors
        for name, value in after.items():
            assert torch.equal(value, found[name]), name
            assert (value.device, value.stride()) == (found[name].device, found[name].stride()), name
        for one in (trainer, again):
            one.step(3)  # fused steps want all of a parameter's tensors to lie alike


def test_batches_fetched_ahead_are_those_that_lie_on_the_gpu(work):
    images = load_canvases(open_source(work / "train"), 16)
    order = Order(seed=0, images=len(images), batch_size=8)
    device = torch.device("cuda", 0)
    resident = open_feed(images, order.rows, device, last=6)
    assert isinstance(resident, ResidentFeed)
    fetched = FetchedFeed(lambda rows: (images.pixels[rows], images.aspect[rows]), order.rows, device, last=6)
    for step in range(6):
        for ours, theirs in zip(resident.batch(step), fetched.batch(step), strict=True):
            assert ours.device.type == "cuda"
            assert torch.equal(ours, theirs)
    fetched.close()


def test_features_on_cuda_reproduce_torchs_golden_features(work):
    images, expected = Bundle.open(work / "bundle").golden()
    encoder = Encoder(work / "bundle", device="cuda")
    assert encoder.device == "cuda"
    error, cosine = compare_features(expected, encoder.encode(images))
    assert error < 1e-3  # TF32 is off; cuDNN's algorithms round in another order than the CPU's
    assert cosine > 0.99999


def test_every_graph_of_a_bundle_keeps_its_gate_on_cuda(work):
    bundle = Bundle.open(work / "bundle")
    for name in bundle.manifest.graphs:
        if name == "encoder.onnx":
            continue  # its own test
        images, expected = bundle.golden(name)
        found = open_graph(bundle, name, "cuda").run({"images": images})[0]
        problem = GATES[name].problem(*compare_features(expected, found))
        assert problem is None, f"{name}: {problem}"


def test_auto_takes_fp16_on_cuda(work):
    encoder = Encoder(work / "bundle", variant="auto")
    assert (encoder.device, encoder.variant) == ("cuda", "fp16")


def test_classifiers_on_cuda_agree_with_the_cpu():
    random = np.random.default_rng(0)
    centres = random.normal(size=(5, 32))
    y = random.integers(0, 5, 600)
    x = (centres[y] + random.normal(size=(600, 32))).astype(np.float32)
    for make in (KNNClassifier, LinearProbe):
        there, here = make(device="cuda").fit(x[:400], y[:400]), make(device="cpu").fit(x[:400], y[:400])
        assert there.device_ == "cuda"
        assert (there.predict(x[400:]) == here.predict(x[400:])).mean() > 0.99
