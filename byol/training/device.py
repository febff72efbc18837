"""Device, precision and compilation: what `auto` means on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from byol.signals import Ended
from byol.text import first_line

# Images that a run sees in one size of views, from which compiling pays. On CUDA an estimate, not measured: compiling
# takes about a minute, which a million images make up for at twice 8,000 images/s.
WORTH_COMPILING = {"cpu": 200_000, "cuda": 1_000_000}


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device for auto, cpu or cuda; each process on a machine takes the GPU of its own number.

    Raises `ValueError` when torch cannot use CUDA or finds fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise ValueError(
            f"device is cuda, but torch {torch.__version__} (built with {build}) finds no usable NVIDIA GPU; "
            "check `nvidia-smi`, or use --device cpu"
        )
    if name == "cuda":
        if local_rank >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ValueError(
                f"process {local_rank + 1} on this machine finds {count} GPUs; use --nproc {count} or fewer, or "
                "LOCAL_RANK=0 if a launcher gives each process its own GPU"
            )
        return torch.device("cuda", local_rank)
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto`: bf16 where the device multiplies it natively, else fp32."""
    if name != "auto":
        return name
    return "bf16" if _has_fast_bf16(device) else "fp32"


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch has no public query for these CPU features; a missing one means fp32.
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check() for check in checks if check is not None)


def resolve_compile(choice: str, device: torch.device, images: int) -> str:
    """What to compile; `auto` weighs the time it takes against the number of images seen in each size of views.

    On a CPU the networks gain nothing (benchmarks/README.md); the augmentation takes some 20 s to compile. Raises
    `ValueError` when the CPU needs a compiler and there is none.
    """
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    compiler = device.type == "cuda" or shutil.which(name)
    if choice in ("all", "augmentation") and not compiler:
        raise ValueError(
            f"compile is {choice}, but the C++ compiler {name} is not found; install it, or add --no-compile"
        )
    if choice != "auto":
        return choice
    if images < WORTH_COMPILING[device.type] or not compiler:
        return "none"
    return "all" if device.type == "cuda" else "augmentation"


def silence_compiler() -> None:
    """Keep torch from saying that there is no CUDA runtime when it compiles for a CPU."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def compiler(on_trial: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What compiles a function; `on_trial`, a machine that cannot compile goes on without (see `compiled_or_eager`).

    Not dynamic: a run has few sizes of views, and each gets code of its own.
    """
    silence_compiler()
    return compiled_or_eager if on_trial else partial(torch.compile, dynamic=False)


def compiled_or_eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled function; where this machine cannot compile (no Python headers), a warning and the plain one.

    The backward pass is compiled with the forward pass, not when it is first needed, where nothing could catch that.
    """
    call = torch.compile(function, dynamic=False)

    def guarded(*arguments: Any) -> Any:
        nonlocal call
        try:
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                return call(*arguments)
        except Exception as error:
            if call is function or _is_out_of_memory(error):
                raise
            reason = getattr(error, "inner_exception", error)  # the first line of torch's own only names its backend
            warnings.warn(f"not compiled: {first_line(reason)}", stacklevel=2)
            call = function
            return call(*arguments)

    return guarded


def take_device(device: torch.device) -> None:
    """Make a GPU the calling thread's own, before anything is allocated: else the first one pays for each process."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


@contextmanager
def for_fixed_shapes(device: torch.device) -> Iterator[None]:
    """While active, cuDNN tries its algorithms for each new shape and keeps the fastest; a setting of the process."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def resolve_sync_norm(choice: str, micro_batch: int, world: int) -> bool:
    """auto: on where a process sees fewer than 128 images per forward, too few for its own statistics."""
    if world == 1 or choice == "off":
        return False
    return choice == "on" or micro_batch < 128


@contextmanager
def enough_memory(remedy: Callable[[], str]) -> Iterator[None]:
    """Turn a lack of memory into an `Ended` that says what to do: `remedy()`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise Ended(f"out of memory: {remedy()}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    """On a CPU, and from cuDNN and cuBLAS, as well, where torch raises a plain RuntimeError."""
    said = ("DefaultCPUAllocator", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in said)


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: on the GPU by torch, on a CPU by the process (0 where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
