"""How large the trial is: for a GPU, or so small that a CPU goes through all of it in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    device: str = "cuda"
    images: int = 20_000
    """Synthetic images that the training rows draw from."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of every training row, over those of the row."""
    warm_up: int = 8
    """Steps before the timed ones; compilation is in the first."""
    steps: int = 40
    """Timed steps."""
    encoders: tuple[tuple[str, int], ...] = (("resnet50", 224), ("timm:vit_small_patch16_224", 224))
    """Architecture and side of the encoders that are served; call two takes the last."""
    batches: tuple[int, ...] = (1, 8, 64, 256)
    """Sizes of the batches that are served; the last is that of all other rows."""
    seconds: float = 0.7
    """Timed for each row of inference."""
    bank: int = 50_000
    queries: int = 10_000
    files: int = 10_000
    """PNG files for lightly's loop and ours beside it."""
    loop_seconds: float = 6.0
    memory: int = 1 << 30
    """Numbers copied to measure the memory's rate."""
    matrix: int = 8192
    """Side of the matrices multiplied to measure the card's rate."""

    @property
    def is_dry(self) -> bool:
        """Whether this is the small one."""
        return self.device == "cpu"


FULL = Scale()
TINY = {"arch": "timm:test_resnet", "stem": "auto", "image_size": 16, "canvas_size": 16, "batch_size": 8, "lr": 0.1}
TINY |= {"projector_hidden": 32, "projector_out": 16, "predictor_hidden": 32, "compile": "none", "precision": "fp32"}
DRY = Scale(
    device="cpu",
    images=64,
    settings=TINY,
    warm_up=1,
    steps=1,
    encoders=(("timm:test_resnet", 32),),
    batches=(1, 4),
    seconds=0.02,
    bank=1000,
    queries=100,
    files=32,
    loop_seconds=0.1,
    memory=1 << 16,
    matrix=128,
)
