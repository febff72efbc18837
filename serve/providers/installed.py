"""Execution providers in packages of their own, by the name that `--device` takes. Imports none of them; light."""

from __future__ import annotations

import re

from byol.machine import DEVICES

OPENVINO = "openvino"  # known by name; others are found where they are installed
DEVICE_NAMES = (*DEVICES, OPENVINO)
PACKAGE = "onnxruntime-ep-"  # by which ONNX Runtime's plug-in packages begin


def plugin_packages() -> dict[str, str]:
    """The installed packages by device name: {"openvino": "onnxruntime-ep-openvino"}. Reads names only."""
    from importlib import metadata

    found = (re.sub(r"[-_.]+", "-", str(package.name or "")).lower() for package in metadata.distributions())
    packages = {name.removeprefix(PACKAGE): name for name in sorted(found) if name.startswith(PACKAGE)}
    return {device: package for device, package in packages.items() if device not in DEVICES}


def is_plugin(device: str) -> bool:
    """Whether a device is a provider of a package of its own, known or installed."""
    return device == OPENVINO or (device not in DEVICES and device in list(plugin_packages()))
