"""Names of plug-ins come from what is installed, and nothing of them is imported for that."""

from __future__ import annotations

from pathlib import Path

import pytest

from byol.serve.providers.installed import is_plugin, plugin_packages
from tests.support.command_line import byol
from tests.support.plugins import install_plugin
from tests.support.tiny import write_tiny_bundle


def test_installed_packages_go_by_the_rest_of_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime-ep-qnn", "OnnxRuntime_EP_Some.Thing", "onnxruntime-ep-cuda", "onnxruntime-extensions"):
        install_plugin(tmp_path, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = plugin_packages()
    assert packages["qnn"] == "onnxruntime-ep-qnn"
    assert packages["some-thing"] == "onnxruntime-ep-some-thing"
    assert not {"cuda", "extensions"} & packages.keys()  # cuda is ONNX Runtime's own
    assert is_plugin("qnn")


def test_one_device_is_known_before_it_is_installed() -> None:
    assert is_plugin("openvino")
    assert not any(map(is_plugin, ("auto", "cpu", "cuda", "gpu", "")))


def test_the_command_line_takes_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    refused = byol("bench", bundle, "--device", "broken")
    assert (refused.code, "'broken' is not one of 'auto', 'cpu', 'cuda', 'openvino'" in refused.err) == (2, True)
    install_plugin(tmp_path, "onnxruntime-ep-broken", "raise ImportError('libbroken.so: cannot open shared object')")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = byol("bench", bundle, "--device", "broken")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: broken cannot be used: onnxruntime-ep-broken 1.2 cannot be loaded: libbroken.so")
