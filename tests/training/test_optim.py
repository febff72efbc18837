"""LARS against a float64 definition, schedules against hand-written numbers, state that survives a round trip."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from byol.training.config import TrainConfig
from byol.training.data.augment import draw, render
from byol.training.data.view_config import ViewConfig
from byol.training.optim import (
    LARS,
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
    tau_at,
)
from byol.training.setup import Plan


def test_learning_rate_warms_up_linearly_then_falls_along_a_cosine():
    rates = [learning_rate(step, total=100, warmup=10, peak=2.0) for step in (0, 5, 10, 55, 100)]
    assert rates == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0])


def test_learning_rate_without_warm_up_starts_at_the_peak():
    assert learning_rate(0, total=10, warmup=0, peak=0.3) == 0.3


def test_tau_goes_from_its_base_to_one_along_a_cosine():
    # 1 - (1 - 0.996) * (cos(pi k / K) + 1) / 2 at k = 0, K/4, K/2, K
    values = [tau_at(step, total=1000, base=0.996) for step in (0, 250, 500, 1000)]
    assert values == pytest.approx([0.996, 1 - 0.004 * (math.sqrt(0.5) + 1) / 2, 0.998, 1.0])


def test_constant_tau_stays():
    assert tau_at(700, total=1000, base=0.99, cosine=False) == 0.99


class Reference:
    """LARS in float64 NumPy, written from its definition."""

    def __init__(self, weights, eta, momentum, decay, clip):
        self.w = [w.astype(np.float64) for w in weights]
        self.m = [np.zeros_like(w) for w in self.w]
        self.eta, self.momentum, self.decay, self.clip = eta, momentum, decay, clip

    def step(self, grads, lr):
        for i, g in enumerate(grads):
            d = g.astype(np.float64)
            if self.w[i].ndim > 1:
                d = d + self.decay * self.w[i]
                w_norm, d_norm = np.linalg.norm(self.w[i]), np.linalg.norm(d)
                ratio = self.eta * w_norm / d_norm if w_norm > 0 and d_norm > 0 else 1.0
                if self.clip and w_norm > 0 and d_norm > 0:
                    ratio = min(ratio / lr, 1.0)
                d = d * ratio
            self.m[i] = self.momentum * self.m[i] + d
            self.w[i] = self.w[i] - lr * self.m[i]


@pytest.mark.parametrize("clip", [False, True])
def test_lars_steps_equal_its_definition(clip):
    random = np.random.default_rng(0)
    shapes = [(8, 3, 3, 3), (5, 8), (8,), (5,), (4, 4)]
    weights = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    weights[-1][:] = 0  # a zero norm: the ratio is 1
    parameters = {f"p{i}": nn.Parameter(torch.tensor(w)) for i, w in enumerate(weights)}
    config = TrainConfig(weight_decay=1e-2, lars_eta=0.02, lars_clip=clip)
    optimizer = build_optimizer(config, parameters)
    reference = Reference(weights, 0.02, 0.9, 1e-2, clip)
    for step in range(5):
        lr = 0.1 + 0.2 * step
        grads = [random.normal(size=shape).astype(np.float32) for shape in shapes]
        if step == 3:
            grads[1][:] = 0
        for p, g in zip(parameters.values(), grads, strict=True):
            p.grad = torch.tensor(g)
        set_learning_rate(optimizer, lr)
        optimizer.step()
        reference.step(grads, lr)
    for p, w in zip(parameters.values(), reference.w, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=2e-5, atol=1e-6)


def like_an_encoders(count=6):
    """Parameters of many shapes, in both orders of memory, with gradients; some longer than a row."""
    random = torch.Generator().manual_seed(0)
    shapes = [(8, 3, 3, 3), (5, 8), (8,), (40, 60), (4, 4, 1, 1), (1, 7)][:count]
    parameters = {}
    for number, shape in enumerate(shapes):
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        p = nn.Parameter(torch.randn(shape, generator=random).contiguous(memory_format=layout))
        p.grad = torch.randn(shape, generator=random).contiguous(memory_format=layout)
        parameters[f"p{number}"] = p
    return parameters


@pytest.mark.parametrize("clip", [False, True])
def test_lars_all_at_once_is_lars_one_by_one_to_the_bit(clip):
    """What it did until it took all parameters at once: runs go on to the same bits."""
    config = TrainConfig(weight_decay=1e-2, lars_eta=0.02, lars_clip=clip)
    parameters = like_an_encoders()
    expected = {name: (p.detach().clone(), torch.zeros_like(p)) for name, p in parameters.items()}
    optimizer = build_optimizer(config, parameters)
    for step in range(3):
        lr = 0.1 + 0.2 * step
        set_learning_rate(optimizer, lr)
        optimizer.step()
        for name, (w, m) in expected.items():
            d = parameters[name].grad.clone()
            if w.ndim > 1:
                d.add_(w, alpha=1e-2)
                ratio = 0.02 * torch.linalg.vector_norm(w) / torch.linalg.vector_norm(d)
                d.mul_((ratio / lr).clamp(max=1) if clip else ratio)
            m.mul_(0.9).add_(d)
            w.add_(m, alpha=-lr)
    for name, (w, m) in expected.items():
        assert torch.equal(parameters[name].detach(), w), name
        assert torch.equal(optimizer.state[parameters[name]]["momentum_buffer"], m), name


class Launches(TorchDispatchMode):
    """The operations that compute something; those of lists must take CUDA's way for all tensors at once."""

    VIEWS = (
        "as_strided",
        "unbind",
        "slice",
        "select",
        "view",
        "detach",
        "unsqueeze",
        "expand",
        "alias",
        "t.",
        "new_empty",
    )

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        name = operation.name().removeprefix("aten::")
        if not name.startswith(self.VIEWS):
            self.names.append(name)
        lists = [given for given in arguments if isinstance(given, list) and isinstance(given[0], torch.Tensor)]
        if name.startswith("_foreach"):
            for together in zip(*lists, strict=True):
                first = together[0]
                assert all(tensor.shape == first.shape and tensor.stride() == first.stride() for tensor in together), (
                    name
                )
        return operation(*arguments, **(keywords or {}))


def test_lars_launches_as_much_for_two_parameters_as_for_six():
    """A product of a list with a list of factors would go one by one."""
    counts = []
    for count in (3, 6):
        optimizer = build_optimizer(TrainConfig(weight_decay=1e-2), like_an_encoders(count))
        optimizer.step()  # makes its buffers
        with Launches() as launches:
            optimizer.step()
        assert launches.names
        counts.append(len(launches.names))
    assert counts[0] == counts[1] < 25


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.1), ("adamw", 1e-3)])
def test_on_cuda_a_step_is_fused_and_takes_up_a_state_that_lies_as_the_parameters(name, lr):
    """On tensors that are CUDA's by name only. A fused step refuses state in another order of memory, or elsewhere."""
    config = TrainConfig(optimizer=name, lr=lr)
    keys = ("exp_avg", "exp_avg_sq", "step") if name == "adamw" else ("momentum_buffer",)
    real = like_an_encoders()
    assert build_optimizer(config, real).defaults["fused"] is None  # on a CPU as ever
    stored = {f"{p}.{key}": torch.ones(() if key == "step" else real[p].shape) for p in real for key in keys}
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameters = {
            p: nn.Parameter(torch.empty_strided(value.shape, value.stride(), device="cuda"))
            for p, value in real.items()
        }
        optimizer = build_optimizer(config, parameters)
    assert optimizer.defaults["fused"] is True
    load_optimizer_tensors(optimizer, parameters, stored)
    for p in parameters.values():
        for key, value in optimizer.state[p].items():
            assert value.device.type == "cuda", key
            assert value.stride() == (() if key == "step" else p.stride()), key
            assert not value.requires_grad


def test_lars_leaves_a_parameter_without_gradient_alone():
    p = nn.Parameter(torch.ones(2, 2))
    LARS([p], lr=1.0).step()
    assert torch.equal(p.detach(), torch.ones(2, 2))


@pytest.mark.parametrize(("name", "lr"), [("lars", 0.4), ("sgd", 0.1), ("adamw", 1e-3)])
def test_exactly_the_parameters_with_one_dimension_are_excluded(name, lr):
    from byol.training.model import BYOL

    config = TrainConfig(
        arch="resnet18", optimizer=name, lr=lr, weight_decay=0.1, projector_hidden=32, predictor_hidden=32
    )
    parameters = BYOL(config).trained_parameters()
    names = {id(p): key for key, p in parameters.items()}
    optimizer = build_optimizer(config, parameters)
    decayed, excluded = (
        {names[id(p)] for p in group["params"]} for group in (optimizer.param_groups[0], optimizer.param_groups[1])
    )
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert optimizer.param_groups[1]["weight_decay"] == 0
    assert decayed | excluded == set(parameters)
    # Rules by name miss exactly these: the batch-norm of a shortcut and of the projector.
    assert {"online.encoder.layer2.0.downsample.1.weight", "online.projector.1.weight", "predictor.1.bias"} <= excluded
    assert {"online.encoder.layer2.0.downsample.0.weight", "online.projector.3.weight"} <= decayed


@pytest.mark.parametrize(("name", "lr"), [("lars", 0.4), ("sgd", 0.1), ("adamw", 1e-3)])
def test_state_survives_a_round_trip(name, lr):
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        parameters = dict(model.named_parameters())
        return model, parameters, build_optimizer(TrainConfig(optimizer=name, lr=lr), parameters)

    def steps(model, optimizer, seeds):
        for seed in seeds:
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    straight, parameters, optimizer = build()
    steps(straight, optimizer, range(6))

    first, parameters, optimizer = build()
    steps(first, optimizer, range(3))
    saved, weights = optimizer_tensors(optimizer, parameters), first.state_dict()
    second, parameters, optimizer = build()
    second.load_state_dict(weights)
    load_optimizer_tensors(optimizer, parameters, saved)
    steps(second, optimizer, range(3, 6))
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lars", {"b": None}, "missing: b.momentum_buffer$"),
        ("sgd", {"v": torch.ones(2)}, "unexpected: v.momentum_buffer$"),
        ("lars", {"w": torch.ones(1)}, r"shape: w.momentum_buffer is \(1,\), expected \(2, 2\)"),
        ("sgd", {"w": torch.ones(2, 2, dtype=torch.int64)}, "type: w.momentum_buffer is torch.int64"),
        ("adamw", {"w": torch.ones(2, 2)}, "missing: b.exp_avg; .*; unexpected: b.momentum_buffer"),
    ],
)
def test_state_that_does_not_fit_is_refused(name, changes, message):
    """One of another shape would end the next step by an error of torch's, or be spread over the parameter."""
    p = {name: nn.Parameter(torch.ones(2, 2)) for name in ("w", "b")}
    state = {name: torch.ones(2, 2) for name in p} | changes
    buffers = {f"{name}.momentum_buffer": value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_optimizer_tensors(build_optimizer(TrainConfig(optimizer=name, lr=1e-3), p), p, buffers)


@pytest.mark.parametrize("step", [-1.0, float("nan"), 1e30])
def test_a_number_of_steps_that_is_none_is_refused(step):
    p = {"w": nn.Parameter(torch.ones(2, 2))}
    state = {"w.exp_avg": torch.ones(2, 2), "w.exp_avg_sq": torch.ones(2, 2), "w.step": torch.tensor(step)}
    with pytest.raises(ValueError, match=r"w.step is .*; expected a number of steps"):
        load_optimizer_tensors(build_optimizer(TrainConfig(optimizer="adamw", lr=1e-3), p), p, state)


def numbers_of(settings):
    """Each setting that is a number, or holds numbers, with a value of its kind."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, tuple) or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield field.name, value


@pytest.mark.parametrize("extreme", [5e-324, 1e-38, 3e38, 1e308, 1 << 20, (1 << 63) - 1, 1 << 64, 10**400])
def test_no_number_is_too_much_for_the_schedules(extreme):
    """Refused, or calculated with; nothing between."""
    taken = 0
    for name, value in numbers_of(TrainConfig()):
        number = extreme if isinstance(value, float | tuple) else int(extreme)
        change: dict[str, Any] = {name: (number,) * len(value) if isinstance(value, tuple) else number}
        try:
            config = TrainConfig(**change)
        except ValueError:
            continue
        taken += 1
        plan = Plan.of(config, 1 << 24)
        for step in (0, plan.warmup, plan.total - 1):
            assert math.isfinite(learning_rate(step, plan.total, plan.warmup, config.peak_lr))
            assert 0 <= tau_at(step, plan.total, config.tau, config.tau_cosine) <= 1
    assert taken or extreme >= 1e308


@pytest.mark.parametrize("extreme", [5e-324, 1e-38, 3e38, 1e308])
def test_no_number_is_too_much_for_the_views(extreme):
    images, aspect = torch.rand(2, 3, 12, 12), torch.ones(2)
    for name, value in numbers_of(ViewConfig()):
        changes: list[Any] = [(extreme, extreme), (extreme, 1.0), (1.0, extreme)]
        for change in changes if isinstance(value, tuple) else [extreme]:
            try:
                view = ViewConfig(**{name: change})
            except ValueError:
                continue
            params = draw(view, aspect, torch.Generator().manual_seed(0))
            assert torch.isfinite(render(view, images, params, 8)).all(), (name, change)
