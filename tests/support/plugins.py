"""Plug-in execution providers for tests: packages as pip leaves them, and what ONNX Runtime would say of one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

LIBRARY = """
def get_library_path(): return {path!r}
def get_ep_name(): return {provider!r}
"""


def install_plugin(folder: Path, package: str, code: str = "raise AssertionError('imported')") -> None:
    """A distribution and its module in a folder of the import path."""
    module = package.lower().replace("-", "_").replace(".", "_")
    information = folder / f"{module}-1.2.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(code)


def offer(provider: str, kind: str = "CPU", **metadata: str) -> Any:
    """What `ort.get_ep_devices` lists for a provider on some hardware."""
    hardware = SimpleNamespace(type=getattr(ort.OrtHardwareDeviceType, kind), vendor="Somebody", metadata={})
    return SimpleNamespace(ep_name=provider, ep_metadata=metadata, device=hardware)


def pretend(monkeypatch: pytest.MonkeyPatch, *offers: Any) -> None:
    """Let ONNX Runtime load any library, and then offer this."""
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda name, path: None)
    monkeypatch.setattr(ort, "get_ep_devices", lambda: list(offers))
