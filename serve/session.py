"""ONNX Runtime sessions that really run on the device they name.

ONNX Runtime falls back to the CPU silently when a CUDA library is missing, and its lists of providers describe the
build, not the machine. So a CUDA session counts only when the session itself names CUDA first and a warm-up run works;
one of a plug-in, when that took the nodes that matter, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime as ort

from byol.bundle.model import Model
from byol.bundle.parity import BF16
from byol.machine import DEVICES, driver_problem, usable_cores
from byol.serve.errors import DeviceError, SessionError
from byol.serve.providers import cuda, plugins
from byol.serve.providers.installed import DEVICE_NAMES, OPENVINO, is_plugin, plugin_packages
from byol.serve.providers.messages import ERROR, FATAL, quiet, said_during
from byol.text import first_line

Feeds = Mapping[str, np.ndarray | ort.OrtValue]
WarmUp = Callable[[str], Feeds]  # device -> inputs of the size that will be run there

_CPU = "CPUExecutionProvider"


class Session:
    """A graph on a device. `device` is "cpu", "cuda" or a plug-in's name, `reason` says why."""

    def __init__(self, inference: ort.InferenceSession, device: str, reason: str) -> None:
        self.inference, self.device, self.reason = inference, device, reason

    def on_device(self, array: np.ndarray) -> ort.OrtValue:
        """An input for several runs, copied to a GPU once (elsewhere: not at all)."""
        place = "cuda" if self.device == "cuda" else "cpu"
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), place, 0)

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """All outputs, as NumPy arrays. Raises `SessionError`."""
        try:
            if not any(isinstance(value, ort.OrtValue) for value in feeds.values()):
                return list(self.inference.run(None, dict(feeds)))
            binding = self.inference.io_binding()
            for name, value in feeds.items():
                if isinstance(value, ort.OrtValue):
                    binding.bind_ortvalue_input(name, value)
                else:
                    binding.bind_cpu_input(name, np.asarray(value, order="C"))
            for output in self.inference.get_outputs():
                binding.bind_output(output.name)
            self.inference.run_with_iobinding(binding)
            return [value.numpy() for value in binding.get_outputs()]  # bound to the CPU, the default
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise SessionError(f"ONNX Runtime failed on {self.device}: {first_line(error)}") from error


def open_session(
    model: bytes | Model, device: str, warm_up: WarmUp, shares_cores: bool = False, precision: str = "fp32"
) -> Session:
    """Create a session on `device` (auto, cpu, cuda or a plug-in's name) and run it once on `warm_up(device)`.

    `auto` takes CUDA when it works, else the CPU; `Session.reason` says why. `shares_cores`: other threads
    decode at the same time, so idle ONNX Runtime threads must not spin. `precision`: "bf16" computes an fp32 graph in
    bf16, which only plug-ins do; all else is computed as the graph says.
    Raises `DeviceError` when `device` is not auto and does not run, `SessionError` when the graph does not.
    """
    model = model if isinstance(model, Model) else Model(model)
    if is_plugin(device):
        return _plugin_session(model, device, warm_up, shares_cores, precision)
    if device not in DEVICES:
        names = dict.fromkeys((*DEVICE_NAMES, *plugin_packages()))
        raise DeviceError(f"device is {device!r}; expected one of {', '.join(names)}")
    if precision == BF16:
        raise DeviceError(f"device {device} does not compute {BF16}; use device {OPENVINO}, on a CPU that has it")
    # Without a GPU `auto` need not say what else is missing; `cuda` does, to name all at once.
    reason = "asked for" if device == "cpu" else device == "auto" and (driver_problem() or cuda.build_problem())
    if reason:
        return _cpu_session(model, reason, warm_up, shares_cores)
    try:
        return _cuda_session(model, warm_up, shares_cores)
    except DeviceError as error:
        if device == "cuda":
            raise
        return _cpu_session(model, str(error), warm_up, shares_cores)


def open_beside(model: bytes | Model, device: str, warm_up: WarmUp) -> Session:
    """A session on a graph that is no bundle's: where `device` is a plug-in, on the CPU, as `Session.reason` says.

    Plug-ins may order ties as they like, and prove themselves by a bundle's golden features only.
    """
    if not is_plugin(device):
        return open_session(model, device, warm_up)
    session = open_session(model, "cpu", warm_up)
    session.reason = f"{device} runs the graphs of bundles only"
    return session


def _cpu_session(model: Model, reason: str, warm_up: WarmUp, shares_cores: bool) -> Session:
    options = _options(model, shares_cores)
    options.enable_mem_pattern = False  # it takes a quarter more memory and gains nothing: benchmarks/README.md
    try:
        inference = ort.InferenceSession(model.graph, options, providers=[_CPU], enable_fallback=0)
    except Exception as error:
        raise SessionError(f"ONNX Runtime cannot load the graph: {first_line(error)}") from error
    session = Session(inference, "cpu", reason)
    session.run(warm_up("cpu"))
    return session


def _cuda_session(model: Model, warm_up: WarmUp, shares_cores: bool) -> Session:
    problem = cuda.build_problem() or driver_problem()
    if problem:
        raise _unusable([problem, *cuda.library_problem()])
    cuda.preload()

    def create(severity: int = FATAL) -> ort.InferenceSession:
        options, providers = _options(model, shares_cores, severity), [(cuda.CUDA, cuda.OPTIONS), _CPU]
        return ort.InferenceSession(model.graph, options, providers=providers, enable_fallback=0)

    try:
        with quiet():
            inference = create()
    except Exception as error:
        raise _unusable(cuda.library_problem() or [first_line(error)]) from error
    if inference.get_providers()[0] != cuda.CUDA:
        raise _unusable(cuda.library_problem() or [f"ONNX Runtime fell back to the CPU: {_why(create)}"])
    session = Session(inference, "cuda", "CUDA runs on this machine")
    try:  # cuDNN is loaded at the first convolution: only a run shows that it is there
        session.run(warm_up("cuda"))
    except SessionError as error:
        raise _unusable([*cuda.library_problem(), str(error)]) from error
    return session


def _why(create: Callable[[int], object]) -> str:
    return said_during(lambda: create(ERROR)) or "it does not say why"


def _plugin_session(model: Model, device: str, warm_up: WarmUp, shares_cores: bool, precision: str) -> Session:
    plugin = plugins.load(device)
    if lack := plugin.lacks(precision):
        raise plugins.unusable(device, lack)
    options = _options(model, shares_cores)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices([plugin.hardware], plugin.options(precision))
    try:
        with quiet():
            inference = ort.InferenceSession(model.graph, options, enable_fallback=0)
            left_out = plugin.left_out(inference)
    except Exception as error:
        raise plugins.unusable(device, plugins.last_line(error)) from error
    if inference.get_providers()[0] != plugin.provider or left_out:
        raise plugins.unusable(device, left_out or "ONNX Runtime fell back to the CPU")
    session = Session(inference, device, f"{plugin.package} runs on {plugins.describe(plugin.hardware)}")
    try:
        session.run(warm_up(device))
    except SessionError as error:
        raise plugins.unusable(device, str(error)) from error
    return session


def _unusable(problems: list[str]) -> DeviceError:
    return DeviceError(f"CUDA cannot be used: {'; '.join(problems)}")


def _options(model: Model, shares_cores: bool, severity: int = FATAL) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = severity  # FATAL: errors also arrive as exceptions, which say the same
    options.add_session_config_entry("session.load_model_format", "ONNX")  # not its own format, which is not judged
    # Without VNNI, sums of 8-bit products would be cut off at 16 bits. Our own graphs' 7-bit weights are not touched.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if shares_cores:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if model.weights:
        sizes = [len(content) for content in model.weights.values()]
        options.add_external_initializers_from_files_in_memory(list(model.weights), list(model.weights.values()), sizes)
    return options
