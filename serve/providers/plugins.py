"""Plug-in execution providers: loading one, what it runs on, how to ask it for a precision, and which nodes it took."""

from __future__ import annotations

import functools
import importlib
import json
import re
import threading
from dataclasses import dataclass
from importlib import metadata

import onnxruntime as ort

from byol.bundle.parity import BF16
from byol.machine import cpu_model, usable_cores
from byol.serve.errors import DeviceError
from byol.serve.providers.installed import OPENVINO, PACKAGE, plugin_packages
from byol.serve.providers.messages import quiet
from byol.text import as_message, install

_HEAVY = re.compile("Conv|MatMul|Gemm|Attention")  # operators that take the time
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Plugin:
    """A provider on what it runs on: the device's `name`, its `package` and version, ONNX Runtime's name for it."""

    name: str
    package: str
    provider: str
    hardware: ort.OrtEpDevice

    def options(self, precision: str) -> dict[str, str]:
        """What makes the provider compute a graph as `precision` says: "bf16", or anything else for fp32.

        OpenVINO takes bf16 by itself where the CPU has it. Other providers get no options: the golden features tell.
        """
        if self.name != OPENVINO:
            return {}
        kind = self.hardware.ep_metadata.get("ov_device", "CPU")
        settings = {"INFERENCE_PRECISION_HINT": "bf16" if precision == BF16 else "f32"}
        if kind == "CPU":
            settings["INFERENCE_NUM_THREADS"] = str(usable_cores())
        return {"load_config": json.dumps({kind: settings})}

    def lacks(self, precision: str) -> str | None:
        """Why the provider cannot compute in `precision` here, or None."""
        able = self.hardware.ep_metadata.get("OPTIMIZATION_CAPABILITIES", "").split()
        if precision != BF16 or (self.name == OPENVINO and "BF16" in able):
            return None
        return f"{describe(self.hardware)} does not compute bf16 with {self.package}; use --variant fp32 or int8"

    def left_out(self, inference: ort.InferenceSession) -> str | None:
        """What the provider left to the CPU in a session that records it, where that matters; None when nothing."""
        parts = inference.get_provider_graph_assignment_info()
        if all(part.ep_name != self.provider for part in parts):
            return "it takes none of the graph's nodes"
        others = [node.op_type for part in parts if part.ep_name != self.provider for node in part.get_nodes()]
        left = sorted({operator for operator in others if _HEAVY.search(operator)})
        return f"it leaves {len(others)} nodes of the graph to the CPU, among them {', '.join(left)}" if left else None


def load(name: str) -> Plugin:
    """The provider of a device name, on the CPU where it offers that, else on the first it offers.

    Raises `DeviceError` when it is not installed, cannot be loaded, or offers nothing here.
    """
    package, offered = hardware(name)
    if not offered:
        only = "; as released, it takes Intel's hardware only" if name == OPENVINO else ""
        raise unusable(name, f"{package} finds nothing here that it runs on (this is {cpu_model()}){only}")
    chosen = next((one for one in offered if one.device.type == ort.OrtHardwareDeviceType.CPU), offered[0])
    return Plugin(name, package, chosen.ep_name, chosen)


def hardware(name: str) -> tuple[str, list[ort.OrtEpDevice]]:
    """A device name's package with its version, and what it offers to run on. Raises `DeviceError`."""
    package = plugin_packages().get(name)
    if package is None:
        how = install(OPENVINO) if name == OPENVINO else f"run: pip install {PACKAGE}{name}"
        raise unusable(name, f"{PACKAGE}{name} is not installed; {how}")
    version = f"{package} {metadata.version(package)}"
    try:
        with _one_at_a_time, quiet():
            providers = _register(package)
        return version, [device for device in ort.get_ep_devices() if device.ep_name in providers]
    except Exception as error:  # a library that cannot be loaded, a package without the usual functions
        raise unusable(name, f"{version} cannot be loaded: {last_line(error)}") from error


@functools.cache
def _register(package: str) -> tuple[str, ...]:
    """Make ONNX Runtime load a package's library; the names of its providers."""
    module = importlib.import_module(package.replace("-", "_"))
    names = module.get_ep_names() if hasattr(module, "get_ep_names") else [module.get_ep_name()]
    ort.register_execution_provider_library(package, str(module.get_library_path()))
    return tuple(names)


def unusable(name: str, problem: str) -> DeviceError:
    """The error of a device that cannot be used."""
    return DeviceError(f"{name} cannot be used: {problem}")


def describe(device: ort.OrtEpDevice) -> str:
    """A device in words: "CPU (Intel(R) Xeon(R) Gold 6430)"."""
    name = device.ep_metadata.get("FULL_DEVICE_NAME") or device.device.vendor
    return as_message(f"{device.device.type.name} ({name})")


def last_line(error: BaseException) -> str:
    """The last line of an error message, where OpenVINO says what is wrong: the others name places in its source."""
    lines = str(error).strip().splitlines()
    return as_message(lines[-1].strip()) if lines else type(error).__name__
