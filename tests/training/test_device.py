"""What `auto` compiles, and what happens where compiling does not work."""

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from byol.signals import Ended
from byol.training import setup
from byol.training.device import (
    WORTH_COMPILING,
    compiled_or_eager,
    enough_memory,
    for_fixed_shapes,
    resolve_compile,
    take_device,
)
from byol.training.parallel.processes import World
from byol.training.setup import Setup, in_less_memory, micro_batch
from tests.support.small import config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ENOUGH = WORTH_COMPILING


@pytest.mark.parametrize(
    ("choice", "device", "images", "expected"),
    [
        ("auto", CUDA, ENOUGH["cuda"], "all"),
        ("auto", CUDA, ENOUGH["cuda"] - 1, "none"),
        ("auto", CPU, ENOUGH["cpu"], "augmentation"),
        ("auto", CPU, ENOUGH["cpu"] - 1, "none"),
        ("all", CPU, 1, "all"),
        ("none", CUDA, 10**9, "none"),
    ],
)
def test_auto_compiles_what_pays(choice, device, images, expected, tmp_path, monkeypatch):
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve_compile(choice, device, images) == expected


def test_views_that_grow_are_compiled_twice_and_count_so(monkeypatch):
    asked: list[int] = []

    def resolve(choice, device, images):
        asked.append(images)
        return "none"

    monkeypatch.setattr(setup, "resolve_compile", resolve)
    one_size: tuple[dict[str, Any], ...] = {"start_size": 16}, {"start_size": 8, "start_share": 0.0}, {}
    for changes in ({"start_size": 8}, *one_size):
        Setup.of(config(max_steps=100, **changes), 24, World())
    assert asked == [400, 800, 800, 800]


def test_auto_compiles_nothing_on_a_cpu_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve_compile("auto", CPU, 10**9) == "none"
    with pytest.raises(ValueError, match=r"compile is all, but the C\+\+ compiler \S+ is not found"):
        resolve_compile("all", CPU, 1)


def test_a_machine_that_cannot_compile_goes_on_without(monkeypatch):
    def broken(_function, **_options):
        def call(*_arguments):
            raise RuntimeError("fatal error: Python.h: No such file or directory\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    guarded = compiled_or_eager(torch.neg)
    with pytest.warns(UserWarning, match=r"not compiled: fatal error: Python\.h: No such file or directory$"):
        assert guarded(torch.tensor(2)) == -2
    assert guarded(torch.tensor(3)) == -3  # and says it once


def test_a_backward_pass_that_cannot_be_compiled_is_found_out_in_the_forward_pass(monkeypatch):
    def broken(*_given):
        raise RuntimeError("no such instruction")

    backend = aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=broken)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    guarded, x = compiled_or_eager(torch.sin), torch.zeros(3, requires_grad=True)
    with pytest.warns(UserWarning, match="^not compiled: no such instruction$"):
        found = guarded(x)
    found.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(3))


def test_errors_of_the_function_itself_are_raised(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *given: function(*given))
    guarded = compiled_or_eager(torch.linalg.inv)
    with pytest.warns(UserWarning, match="not compiled"), pytest.raises(RuntimeError, match="singular"):
        guarded(torch.zeros(2, 2))


TOO_LARGE = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
)


@pytest.mark.parametrize("error", TOO_LARGE, ids=type)
def test_lack_of_memory_is_no_sign_of_a_missing_compiler(monkeypatch, error):
    def full(*_arguments):
        raise error

    monkeypatch.setattr(torch, "compile", lambda function, **_: full)
    with pytest.raises(type(error)):
        compiled_or_eager(torch.neg)(torch.tensor(2))


@pytest.mark.parametrize("error", [*TOO_LARGE, MemoryError()], ids=type)
def test_lack_of_memory_says_what_to_do(error):
    with pytest.raises(Ended, match=r"^out of memory: take less$"), enough_memory(lambda: "take less"):
        raise error
    with pytest.raises(RuntimeError, match="singular"), enough_memory(lambda: "take less"):
        raise RuntimeError("a singular matrix")


def test_what_takes_less_memory_is_legal():
    settings = config(batch_size=24, accumulate=2, image_size=16)
    less = in_less_memory(settings, 3)
    assert less == "4 images of 16 px at a time; use --accumulate 4 or --recompute or a smaller --batch-size"
    assert micro_batch(settings.replace(accumulate=4), 3) == 2
    assert in_less_memory(settings.replace(accumulate=4, recompute=True), 3).endswith("; use a smaller --batch-size")


@pytest.mark.parametrize(("device", "while_open"), [(CUDA, True), (CPU, False)])
def test_cudnn_tries_its_algorithms_only_while_a_run_with_fixed_shapes_goes_on(device, while_open):
    assert torch.backends.cudnn.benchmark is False
    with for_fixed_shapes(device):
        assert torch.backends.cudnn.benchmark is while_open
    assert torch.backends.cudnn.benchmark is False


def test_a_process_takes_its_own_gpu(monkeypatch):
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for device in (torch.device("cuda", 3), CPU):
        take_device(device)
    assert taken == [torch.device("cuda", 3)]
