"""What `auto` compiles, and what happens where compiling does not work."""

import pytest
import torch

from byol.training.device import WORTH_COMPILING, compiled_or_eager, resolve_compile

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("choice", "device", "images", "expected"),
    [
        ("auto", CUDA, 1, "all"),
        ("auto", CPU, WORTH_COMPILING, "augmentation"),
        ("auto", CPU, WORTH_COMPILING - 1, "none"),
        ("all", CPU, 1, "all"),
        ("none", CUDA, 10**9, "none"),
    ],
)
def test_auto_compiles_what_pays(choice, device, images, expected, tmp_path, monkeypatch):
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve_compile(choice, device, images) == expected


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


def test_errors_of_the_function_itself_are_raised(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *given: function(*given))
    guarded = compiled_or_eager(torch.linalg.inv)
    with pytest.warns(UserWarning, match="not compiled"), pytest.raises(RuntimeError, match="singular"):
        guarded(torch.zeros(2, 2))
