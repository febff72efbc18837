"""Sessions of our own making with the provider's options, beside those that byol opens. Shared by the scripts here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from benchmarks.gpu.scale import Scale
from byol.serve.providers.cuda import preload

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
Options = Mapping[str, str]


def place(work: Path, arch: str) -> Path:
    """The folder of an encoder: weights.pth and bundle/."""
    return work / arch.replace(":", "-")


def session(graph: Path, scale: Scale, options: Options) -> ort.InferenceSession:
    """On the device of the trial. Raises `RuntimeError` where ONNX Runtime takes another one."""
    preload()
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    wanted = CPU if scale.is_dry else CUDA
    providers = [CPU] if scale.is_dry else [(CUDA, dict(options)), CPU]
    made = ort.InferenceSession(str(graph), settings, providers=providers)
    if made.get_providers()[0] != wanted:
        raise RuntimeError(f"fell back to {made.get_providers()}")
    return made


def noise(batch: int, side: int) -> np.ndarray:
    """Images uint8 (B, S, S, 3)."""
    return np.random.default_rng(1).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)


class Bound:
    """A session's run on buffers of torch's: `images` and `features` lie in pinned memory or on the device."""

    def __init__(self, made: ort.InferenceSession, images: torch.Tensor, features: torch.Tensor) -> None:
        self.made, self.images, self.features = made, images, features
        self.binding = made.io_binding()
        tensors = {"images": (images, np.uint8), "features": (features, np.float32)}
        binds = {"images": self.binding.bind_input, "features": self.binding.bind_output}
        for name, (tensor, kind) in tensors.items():
            binds[name](name, tensor.device.type, 0, kind, tuple(tensor.shape), tensor.data_ptr())

    def run(self) -> None:
        self.made.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()
