"""Networks, loss and target update against independent definitions; loading is strict."""

import copy
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from byol.encoders import ARCHITECTURES
from byol.encoders.build import build_encoder, feature_dim, load_strict
from byol.training.model import BYOL, byol_loss
from tests.support.command_line import byol
from tests.support.small import config


def test_loss_is_two_minus_two_cosines_in_float64():
    random = np.random.default_rng(0)
    q, z = random.normal(size=(7, 5)), random.normal(size=(7, 5))
    cosine = (q * z).sum(1) / np.linalg.norm(q, axis=1) / np.linalg.norm(z, axis=1)
    found = byol_loss(torch.tensor(q).float(), torch.tensor(z).float())
    assert float(found) == pytest.approx(np.mean(2 - 2 * cosine), rel=1e-6)


def test_loss_is_computed_in_float32_whatever_comes_in():
    q = torch.randn(4, 8).bfloat16()
    assert byol_loss(q, q).dtype == torch.float32
    assert float(byol_loss(q, q)) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BYOL(config()).train()


def views(batch=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, 16, 16, generator=generator), torch.rand(batch, 3, 16, 16, generator=generator)


def test_loss_pairs_different_views_symmetrically_one_forward_per_view(model):
    v1, v2 = views()
    # The definition, spelt out on a copy: four online and target projections, batch-norm per view.
    other = copy.deepcopy(model)
    q1, q2 = other.predictor(other.online(v1)), other.predictor(other.online(v2))
    z1, z2 = other.target(v1), other.target(v2)
    expected = byol_loss(q1, z2) + byol_loss(q2, z1)
    found, seen = model(v1, v2)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(model(v2, v1)[0].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(found.detach()) != pytest.approx(float((byol_loss(q1, z1) + byol_loss(q2, z2)).detach()), rel=1e-3)
    assert torch.allclose(seen.prediction, q1)
    assert torch.allclose(seen.target, z2)
    # Views joined into one batch would share their statistics, and give another loss.
    joined = other.predictor(other.online(torch.cat([v1, v2])))
    assert not torch.allclose(joined[: len(v1)], q1, atol=1e-3)


@pytest.mark.parametrize("own", [True, False])
def test_further_views_are_compared_with_both_targets_by_a_predictor_of_their_own(own):
    torch.manual_seed(0)
    model = BYOL(config(local_views=2, own_predictors=own))
    other = copy.deepcopy(model)
    v1, v2 = views()
    _, seen = model(v1, v2)
    small1, small2 = (view[:, :, 4:12, 4:12] for view in views())
    found, _ = model(small1, small2, kind="local", targets=(seen.own_target, seen.target))
    z1, z2 = other.target(v1), other.target(v2)
    predictor = other.predictors["local"] if own else other.predictor
    both = predictor(other.online(torch.cat([small1, small2])))
    pairs = [byol_loss(q, z) for q in both.chunk(2) for z in (z1, z2)]
    assert float(found.detach()) == pytest.approx(2 * np.mean([float(pair.detach()) for pair in pairs]), rel=1e-6)
    found.backward()
    reached = {name for name, p in model.trained_parameters().items() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("online.encoder") for name in reached)
    assert any(name.startswith("predictors.local.") for name in reached) is own
    assert any(name.startswith("predictor.") for name in reached) is not own


def test_further_kinds_leave_the_first_weights_as_they_are():
    built = []
    for settings in (config(), config(local_views=2, cutout_views=1)):
        torch.manual_seed(0)
        built.append(BYOL(settings).state_dict())
    plain, more = built
    assert all(torch.equal(value, more[name]) for name, value in plain.items())
    own = {name.split(".")[1] for name in more.keys() - plain.keys()}
    assert own == {"local", "cutout"}


def test_gradients_reach_the_online_network_only(model):
    model(*views())[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    assert all(p.grad is not None for p in model.trained_parameters().values())
    assert not any(name.startswith("target.") for name in model.trained_parameters())


def test_target_normalises_by_its_own_batch_statistics(model):
    v1, v2 = views()
    before = {name: b.clone() for name, b in model.target.named_buffers()}
    model(v1, v2)
    changed = [name for name, b in model.target.named_buffers() if not torch.equal(b, before[name])]
    assert any("running_mean" in name for name in changed)  # training mode: its statistics move by themselves
    first = model.target(v1)
    for name, buffer in model.target.named_buffers():
        if "running" in name:
            buffer.fill_(7.0)
    assert torch.equal(model.target(v1), first)  # and the stored ones play no part


def test_target_starts_equal_and_moves_by_tau_on_every_parameter_but_no_buffer(model):
    pairs = list(zip(model.target.named_parameters(), model.online.parameters(), strict=True))
    assert all(torch.equal(t, o) for (_, t), o in pairs)
    for p in model.online.parameters():
        p.data.add_(torch.randn_like(p))
    expected = [0.9 * t.double() + 0.1 * o.double() for (_, t), o in pairs]
    buffers = {name: b.clone() for name, b in model.target.named_buffers()}
    model.update_target(0.9)
    for ((name, t), _), e in zip(pairs, expected, strict=True):
        np.testing.assert_allclose(t.detach().numpy(), e.detach().numpy(), atol=1e-6, err_msg=name)
    assert any(name.endswith("bias") for (name, _), _ in pairs)  # biases are averaged too
    assert all(torch.equal(b, buffers[name]) for name, b in model.target.named_buffers())


@pytest.mark.parametrize(("tau", "moved"), [(1.0, False), (0.0, True)])
def test_tau_one_freezes_the_target_and_tau_zero_copies(model, tau, moved):
    for p in model.online.parameters():
        p.data.add_(1.0)
    before = [p.clone() for p in model.target.parameters()]
    model.update_target(tau)
    for old, target, online in zip(before, model.target.parameters(), model.online.parameters(), strict=True):
        assert torch.equal(target, online if moved else old)


def test_heads_follow_the_recipe(model):
    kinds = [type(layer) for layer in model.online.projector.children()]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert model.online.projector[0].bias is not None
    assert model.online.projector[3].bias is None
    assert [type(layer) for layer in BYOL(config(predictor_norm=False)).predictor.children()][1] is nn.Identity
    assert isinstance(BYOL(config(predictor_hidden=0)).predictor, nn.Identity)
    deeper = BYOL(config(projector_layers=3)).online.projector
    assert [type(layer) for layer in deeper.children()] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-5)}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_imagenet_stem_is_torchvisions_model_without_its_classifier(arch):
    theirs = getattr(torchvision.models, arch)(weights=None)
    ours = build_encoder(arch, "imagenet")
    dim = theirs.fc.in_features
    assert feature_dim(ours) == dim
    theirs.fc = nn.Identity()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-5, rtol=1e-5)


def test_cifar_stem_keeps_the_resolution():
    encoder = build_encoder("resnet18", "cifar")
    assert encoder.conv1.stride == (1, 1)
    assert encoder.conv1.kernel_size == (3, 3)
    shapes = []
    encoder.get_submodule("layer1").register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 512)
    assert shapes == [(2, 64, 32, 32)]


def test_without_timm_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # an import of it fails as if it were not installed
    monkeypatch.delitem(sys.modules, "byol.encoders.timm_models", raising=False)
    with pytest.raises(
        ValueError,
        match=r"timm:\w+ needs timm, which is not installed; in a checkout of byol, run: pip install '\.\[train\]'",
    ):
        build_encoder("timm:resnet10t", "imagenet", 32)
    done = byol("train", tmp_path, "--out", tmp_path / "run", "--arch", "timm:resnet10t")
    assert (done.code, done.err) == (
        1,
        "Error: this command needs timm, which is not installed; in a checkout of byol, run: pip install '.[train]'\n",
    )


def test_strict_loading_lists_what_does_not_fit():
    encoder = build_encoder("resnet18", "cifar")
    tensors = dict(encoder.state_dict())
    tensors["backbone.conv1.weight"] = tensors.pop("conv1.weight")
    tensors["bn1.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_strict(encoder, tensors, "weights.safetensors")
    text = str(error.value)
    assert "missing: conv1.weight" in text
    assert "unexpected: backbone.conv1.weight" in text
    assert "shape: bn1.bias is (3,), expected (64,)" in text
