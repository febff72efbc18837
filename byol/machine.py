"""This machine: its cores, CPU features, NVIDIA driver and GPUs, and what happens to freed memory."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import sys
from pathlib import Path

DEVICES = ("auto", "cpu", "cuda")  # what a user may ask for

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

# The instruction sets that decide how fast a graph runs: Linux's name for each, and the usual one.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "asimdhp": "NEON FP16",
    "asimddp": "NEON dot product",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
}
# Those that ONNX Runtime's int8 kernels run fast on.
_BYTE_PRODUCTS = {"AVX-VNNI", "AVX-512 VNNI", "NEON dot product"}

CPUINFO = Path("/proc/cpuinfo")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
NO_DRIVER = f"no NVIDIA driver ({_CUDA_DRIVER} cannot be loaded)"


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks instead of returning them to the system; True if it took effect.

    Activations and decoded images are blocks of some MB, allocated and freed at every step. By default each is
    mapped anew, and every page of it faults again. Elsewhere (macOS, Windows, musl) nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Older glibc refuses a threshold above 32 MB.
    mapped = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def cpu_model() -> str:
    """The CPU's model name, or at least its architecture."""
    named = _cpuinfo("model name")
    return named[0] if named else platform.processor() or platform.machine()


def instruction_sets() -> list[str] | None:
    """Which of `INSTRUCTION_SETS` this CPU has; None where the system does not say (only Linux does)."""
    lines = _cpuinfo("flags") or _cpuinfo("Features")
    flags = set(lines[0].split()) if lines else set()
    return [name for flag, name in INSTRUCTION_SETS.items() if flag in flags] if lines else None


def fast_int8() -> bool:
    """Whether this CPU is known to multiply bytes natively (VNNI, or ARM's dot product), which makes int8 faster."""
    return not _BYTE_PRODUCTS.isdisjoint(instruction_sets() or [])


def driver_problem() -> str | None:
    """What is wrong with the NVIDIA driver, or None."""
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
        status, count = driver.cuInit(0), ctypes.c_int(0)
        status = status or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return NO_DRIVER
    return None if status == 0 and count.value > 0 else f"the NVIDIA driver shows no usable GPU (CUDA error {status})"


def driver_version() -> str | None:
    """The NVIDIA driver's version, as NVML reports it; None without a driver."""
    text = ctypes.create_string_buffer(80)
    try:
        library = ctypes.CDLL(_NVML)
        status = library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, len(text))
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return None if status else text.value.decode("ascii", "replace")


def driver_cuda_version() -> str | None:
    """The newest CUDA version that the NVIDIA driver supports ("12.8"); None without a driver."""
    version = ctypes.c_int(0)
    try:
        status = ctypes.CDLL(_CUDA_DRIVER).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if status else f"{version.value // 1000}.{version.value % 1000 // 10}"


def gpu_count() -> int:
    """The number of GPUs visible to this process through CUDA; 0 without a working driver."""
    count = ctypes.c_int(0)
    if driver_problem() is None:
        ctypes.CDLL(_CUDA_DRIVER).cuDeviceGetCount(ctypes.byref(count))
    return count.value


def gpu_names() -> list[str]:
    """The names of those GPUs, in CUDA's order."""
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    names = []
    for number in range(gpu_count()):
        driver = ctypes.CDLL(_CUDA_DRIVER)
        if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetName(name, len(name), device):
            continue
        names.append(name.value.decode("utf-8", "replace"))
    return names


def usable_cores() -> int:
    """The cores this process may run on: its affinity mask and its container's quota, where there are any."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _quota())))


@functools.cache
def _quota() -> float:
    """The cores' worth of time that the control group of a container grants (cgroup v2); infinite without a limit."""
    try:
        granted, period = QUOTA.read_text().split()
        return float(granted) / float(period)
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf


def _cpuinfo(key: str) -> list[str]:
    """The values of a key of /proc/cpuinfo, one per core; none where there is no such file or key."""
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]
