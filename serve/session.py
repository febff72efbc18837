"""ONNX Runtime sessions that really run on the device they name.

ONNX Runtime falls back to the CPU silently when a CUDA library is missing, and its lists of providers describe the
build, not the machine. So a CUDA session counts only when the session itself names CUDA first and a warm-up run works.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnxruntime as ort

from byol.bundle.model import Model
from byol.machine import DEVICES, driver_problem, usable_cores
from byol.text import first_line, install

Feeds = Mapping[str, np.ndarray | ort.OrtValue]
WarmUp = Callable[[str], Feeds]  # device -> inputs of the size that will be run there

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# TF32 would round inputs to 10 bits; HEURISTIC chooses convolutions in milliseconds, the default takes 0.6 s a shape.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_QUIET = 4  # ONNX Runtime's severity "fatal": its errors also arrive as exceptions, which say the same


class DeviceError(ValueError):
    """The requested device cannot be used; the message names what is missing."""


class SessionError(ValueError):
    """ONNX Runtime refused a graph or failed to run it."""


class Session:
    """A graph on a device. `device` is "cpu" or "cuda", `reason` says why."""

    def __init__(self, inference: ort.InferenceSession, device: str, reason: str) -> None:
        self.inference, self.device, self.reason = inference, device, reason

    def on_device(self, array: np.ndarray) -> ort.OrtValue:
        """An input for several runs, copied to the device once (on the CPU: not at all)."""
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), self.device, 0)

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


def open_session(model: bytes | Model, device: str, warm_up: WarmUp, shares_cores: bool = False) -> Session:
    """Create a session on `device` (auto, cpu or cuda) and run it once on `warm_up(device)`.

    `auto` takes CUDA when it works, else the CPU; `Session.reason` says why. `shares_cores`: other threads
    decode at the same time, so idle ONNX Runtime threads must not spin.
    Raises `DeviceError` when `device` is cuda and CUDA does not run, `SessionError` when the graph does not.
    """
    model = model if isinstance(model, Model) else Model(model)
    if device not in DEVICES:
        raise DeviceError(f"device is {device!r}; expected one of {', '.join(DEVICES)}")
    # Without a GPU `auto` need not say what else is missing; `cuda` does, to name all at once.
    reason = "asked for" if device == "cpu" else device == "auto" and (driver_problem() or build_problem())
    if reason:
        return _cpu_session(model, reason, warm_up, shares_cores)
    try:
        return _cuda_session(model, warm_up, shares_cores)
    except DeviceError as error:
        if device == "cuda":
            raise
        return _cpu_session(model, str(error), warm_up, shares_cores)


def _cpu_session(model: Model, reason: str, warm_up: WarmUp, shares_cores: bool) -> Session:
    try:
        inference = ort.InferenceSession(
            model.graph, _options(model, shares_cores), providers=[_CPU], enable_fallback=0
        )
    except Exception as error:
        raise SessionError(f"ONNX Runtime cannot load the graph: {first_line(error)}") from error
    session = Session(inference, "cpu", reason)
    session.run(warm_up("cpu"))
    return session


def _cuda_session(model: Model, warm_up: WarmUp, shares_cores: bool) -> Session:
    problem = build_problem() or driver_problem()
    if problem:
        raise _unusable([problem, *_library_problem()])
    preload()
    try:
        with _quiet():
            providers = [(_CUDA, _CUDA_OPTIONS), _CPU]
            options = _options(model, shares_cores)
            inference = ort.InferenceSession(model.graph, options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise _unusable(_library_problem() or [first_line(error)]) from error
    if inference.get_providers()[0] != _CUDA:
        raise _unusable(_library_problem() or ["ONNX Runtime fell back to the CPU without saying why"])
    session = Session(inference, "cuda", "CUDA runs on this machine")
    try:  # cuDNN is loaded at the first convolution: only a run shows that it is there
        session.run(warm_up("cuda"))
    except SessionError as error:
        raise _unusable([*_library_problem(), str(error)]) from error
    return session


def _unusable(problems: list[str]) -> DeviceError:
    return DeviceError(f"CUDA cannot be used: {'; '.join(problems)}")


def _options(model: Model, shares_cores: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = _QUIET
    options.add_session_config_entry("session.load_model_format", "ONNX")  # not its own format, which is not judged
    # Without VNNI, sums of 8-bit products would be cut off at 16 bits. Our own graphs' 7-bit weights are not touched.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if shares_cores:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if model.weights:
        sizes = [len(content) for content in model.weights.values()]
        options.add_external_initializers_from_files_in_memory(list(model.weights), list(model.weights.values()), sizes)
    return options


# ------------------------------------------------------------------------------- what keeps CUDA from running


def build_problem() -> str | None:
    """What is wrong with the installed ONNX Runtime for CUDA, or None."""
    if _CUDA in ort.get_available_providers():
        return None
    return (
        f"the installed onnxruntime {ort.__version__} is built without CUDA "
        f"(run pip uninstall onnxruntime; then, {install('gpu')})"
    )


def free_memory(device: str) -> float:
    """Free bytes on CUDA's first device; infinite for the CPU, which needs no copy."""
    if device == "cpu":
        return float("inf")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    status = ctypes.CDLL(cuda_libraries()[0]).cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    return float(free.value) if status == 0 else 0.0


def missing_libraries() -> list[str]:
    """The CUDA libraries that this ONNX Runtime needs but cannot load."""
    preload()
    return [name for name in cuda_libraries() if not _loads(name)]


def cuda_libraries() -> list[str]:
    """File names of the libraries that the CUDA provider of the installed ONNX Runtime needs."""
    major = int(str(getattr(ort, "cuda_version", "")).partition(".")[0] or 0)
    if major == 0:
        return []
    versions = {"cudart": major, "cublas": major, "cublasLt": major, "curand": 10, "cufft": major - 1, "cudnn": 9}
    if sys.platform == "win32":
        return [f"{name}64_{version}.dll" for name, version in versions.items()]
    return [f"lib{name}.so.{version}" for name, version in versions.items()]


def _library_problem() -> list[str]:
    missing = missing_libraries()
    text = f"libraries that cannot be loaded: {', '.join(missing)} (to get them, {install('gpu')})"
    return [text] if missing else []


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


@functools.cache
def preload() -> str:
    """Load the CUDA libraries that pip installed, once; returns what ONNX Runtime prints about it.

    It would print to stdout, which is reserved for results.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        try:
            ort.preload_dlls()
        except Exception as error:  # the session will say what does not work
            printed.write(str(error))
    return printed.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's own lines about a missing provider off stderr; we say it in one sentence."""
    ort.set_default_logger_severity(_QUIET)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)  # its default: warnings
