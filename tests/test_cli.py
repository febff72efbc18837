"""What ends a command from without is one line, no traceback."""

from __future__ import annotations

from typing import Any

import pytest

from byol import cli


class VersionError(Exception):
    """As protobuf has it from 5.26 on."""

    __module__ = "google.protobuf.runtime_version"


def interrupted() -> ImportError:
    error = ImportError("a compiled module")
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (interrupted(), "Aborted!"),
        (ImportError("initialization failed"), "Aborted while loading libraries"),
        (ImportError("x.so: failed to map segment from shared object"), "Error: cannot load a library: x.so"),
        (RuntimeError("can't start new thread"), "Error: no more threads can be started"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "Error: not enough memory: CUDA out of memory"),
        (
            VersionError("gencode 6.31.1 runtime 5.29.0.\nSee more"),
            "Error: onnx cannot be loaded: gencode 6.31.1 runtime",
        ),
        (ImportError("cannot import name 'runtime_version'", name="google.protobuf"), "Error: onnx cannot be loaded: "),
    ],
)
def test_limits_of_the_machine_are_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "byol", fail)
    with pytest.raises(SystemExit) as ended:
        cli._run()
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


def test_an_import_that_is_a_defect_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ImportError("cannot import name 'x' from 'byol'")

    monkeypatch.setattr(cli, "byol", fail)
    with pytest.raises(ImportError):
        cli._run()


def test_a_missing_dependency_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(**_: Any) -> None:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(cli, "byol", fail)
    with pytest.raises(SystemExit) as ended:
        cli._run()
    assert ended.value.code == 1
    line = "Error: this command needs onnxruntime, which is not installed; in a checkout of byol, run: pip install .\n"
    assert capsys.readouterr().err == line
