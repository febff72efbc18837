"""What an encoder of another toolkit was trained on, where its library or toolkit says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from byol.encoders import TIMM
from byol.encoders.pretrained import Three
from byol.images.decode import Preprocess
from byol.training.config import TrainConfig

IMAGENET_MEAN, IMAGENET_STD = TrainConfig.mean, TrainConfig.std
USUAL_SIZE = 224
SWAV_STD = (0.228, 0.224, 0.225)  # its code's own (src/multicropdataset.py), not quite ImageNet's


@dataclass(frozen=True)
class Input:
    """The central `size` pixels of an image whose shorter side has `resize`; `mean` and `std` are of values 0 to 1.

    `origin`: who says so; `remark`: what of it a bundle does otherwise, or nothing.
    """

    size: int
    resize: int
    mean: Three
    std: Three
    origin: str
    remark: str = ""


def input_of(toolkit: str, arch: str, size: int | None) -> Input:
    """For weights of `arch` (a torchvision ResNet, or `timm:NAME` with a tag or without) in a toolkit's layout.

    `size`: pixels, None for the usual ones. Raises `ValueError` for a tag that timm does not know.
    """
    if toolkit == "timm":
        return _of_timm(arch.removeprefix(TIMM), size)
    size = size or USUAL_SIZE
    std, origin = (SWAV_STD, "SwAV's") if toolkit == "swav" else (IMAGENET_STD, "ImageNet's")
    return Input(size, Preprocess.for_size(size).resize, IMAGENET_MEAN, std, origin)


def _of_timm(name: str, size: int | None) -> Input:
    from byol.encoders.timm_models import input_config

    full_name, config = input_config(name)
    size = size or max(config["input_size"][1:])
    mean, std = (_three(config[key]) for key in ("mean", "std"))
    remarks = []
    for key, ours in (("crop_mode", "center"), ("interpolation", "bicubic")):
        if config[key] != ours:
            remarks.append(f"timm's {key} is {config[key]}, a bundle's {ours}")
    resize = max(size, math.floor(size / config["crop_pct"]))  # as timm's own transforms round
    return Input(size, resize, mean, std, f"timm's for {full_name}", "; ".join(remarks))


def _three(values: tuple[float, ...]) -> Three:
    first, second, third = map(float, values)
    return first, second, third
