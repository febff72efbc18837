"""Device, precision and compilation: what `auto` means on this machine."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """auto, cpu or cuda as a device. Raises `ValueError` when CUDA is asked for and torch cannot use it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise ValueError(
            f"device is cuda, but torch {torch.__version__} (built with {build}) finds no usable NVIDIA GPU; "
            "check `nvidia-smi`, or use --device cpu"
        )
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


def resolve_compile(choice: bool | None, device: torch.device) -> bool:
    """Unset: on CUDA only; on a CPU compiling takes about a minute and gains little."""
    return device.type == "cuda" if choice is None else choice
