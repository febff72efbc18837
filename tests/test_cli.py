"""What ends a command from without is one line, no traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from byol import cli
from tests.support.command_line import byol


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
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "Error: torchvision is not for this torch: operator",
        ),
        (ImportError("/x/torchvision/_C.so: undefined symbol: _ZN3c1"), "Error: torchvision is not for this torch: /x"),
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


class Windows:
    """The module `os` as it is there, as far as click looks."""

    name = "nt"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def test_on_windows_too_a_pattern_reaches_the_command_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a-1.tar", "a-2.tar"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAME", "value")
    monkeypatch.setattr("click.core.os", Windows())
    for argument in ("a-*.tar", "$NAME", "~"):
        done = byol("info", argument)
        assert (done.code, argument in done.err) == (2, True), done.err


def test_a_pipe_to_another_process_that_breaks_is_an_error_and_one_to_a_reader_who_has_enough_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("byol.serve.commands.info.info_json", fail)
    for read, said in ((True, "Error: a process that this one works with has ended: Broken pipe\n"), (False, "")):
        monkeypatch.setattr(cli, "has_reader", lambda read=read: read)
        done = byol("info", tmp_path)
        assert (done.code, done.err) == (1, said)


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
