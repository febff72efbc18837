"""What CUDA needs to run here: a driver, a build of ONNX Runtime for it, and NVIDIA's libraries."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import sys
import warnings
from pathlib import Path

import onnxruntime as ort

from byol.serve.providers.messages import quiet
from byol.text import install

CUDA = "CUDAExecutionProvider"
# TF32 would round inputs to 10 bits; HEURISTIC chooses convolutions in milliseconds, the default takes 0.6 s a shape.
OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
# Where NVIDIA's packages keep libraries: nvidia/cudnn/lib, nvidia/cu13/lib; on Windows .../bin, and .../bin/x86_64.
_PLACES = ("*/lib", "*/bin", "*/bin/*")


def build_problem() -> str | None:
    """What is wrong with the installed ONNX Runtime for CUDA, or None."""
    if CUDA in ort.get_available_providers():
        return None
    return (
        f"the installed onnxruntime {ort.__version__} is built without CUDA "
        f"(run pip uninstall onnxruntime; then, {install('gpu')})"
    )


def library_problem() -> list[str]:
    """What is wrong with the libraries that CUDA needs: one sentence, or none."""
    missing = missing_libraries()
    text = f"libraries that cannot be loaded: {', '.join(missing)} (to get them, {install('gpu')})"
    return [text] if missing else []


def missing_libraries() -> list[str]:
    """The CUDA libraries that this ONNX Runtime needs but cannot load."""
    preload()
    return _not_loaded()


def cuda_libraries() -> list[str]:
    """File names of the libraries that the CUDA provider of the installed ONNX Runtime needs."""
    major = int(str(getattr(ort, "cuda_version", "")).partition(".")[0] or 0)
    if major == 0:
        return []
    versions = {"cudart": major, "cublas": major, "cublasLt": major, "curand": 10, "cufft": major - 1, "cudnn": 9}
    if sys.platform == "win32":
        return [f"{name}64_{version}.dll" for name, version in versions.items()]
    return [f"lib{name}.so.{version}" for name, version in versions.items()]


@functools.cache
def preload() -> str:
    """Load the CUDA libraries that pip installed, once; returns what ONNX Runtime prints about it.

    It would print to stdout, which is reserved for results. It looks beside itself only, while `pip install --target`
    or `--user`, or a virtual environment on top of another, puts NVIDIA's packages into folders of their own.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        try:
            ort.preload_dlls()
            for folder in _library_folders():
                if any((folder / name).is_file() for name in _not_loaded()):
                    ort.preload_dlls(directory=str(folder))
        except Exception as error:  # the session will say what does not work
            printed.write(str(error))
    return printed.getvalue()


def _library_folders() -> list[Path]:
    """All folders with libraries of NVIDIA's packages on the import path, in its order."""
    packages = [Path(entry).absolute() / "nvidia" for entry in sys.path if entry]
    folders = [folder for package in packages for place in _PLACES for folder in sorted(package.glob(place))]
    return [folder for folder in folders if folder.is_dir()]


def _not_loaded() -> list[str]:
    return [name for name in cuda_libraries() if not _loads(name)]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def free_memory(device: str) -> float:
    """Free bytes on CUDA's first device; infinite for others, which need no copy."""
    if device != "cuda":
        return float("inf")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    status = ctypes.CDLL(cuda_libraries()[0]).cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    return float(free.value) if status == 0 else 0.0
