"""What a source of images holds, from a few of them: how many there are, their size, whether they have colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from byol.images.decode import decode
from byol.images.source import ImageSource
from byol.images.stamps import LOOKED_INTO, spread

GREY = 0.95  # of the images looked at must be without colour for a set to count as grey
NEARLY = 4.0  # of 255: mean difference between channels of a picture without colour, as JPEG leaves some
SEEN = 64  # px: the side at which colours are looked at
ENOUGH = 256  # px: pictures with longer sides all get the same recipe, so large JPEGs are decoded at a smaller scale


@dataclass(frozen=True)
class Survey:
    """A set of images as a recipe sees it.

    `images`: how many are listed; `side`: the median of their shorter sides in pixels, exact up to 256; `grey`: whether
    they have no colour; `mean`, `std`: of their brightness, 0 to 1.
    """

    images: int
    side: int
    grey: bool
    mean: float
    std: float


@dataclass(frozen=True)
class _Look:
    side: int
    grey: bool
    mean: float
    square: float


def survey(source: ImageSource) -> Survey:
    """Look at up to 64 images spread over a source. Raises `ValueError` when none of them can be read."""
    chosen = source.subset(spread(len(source), LOOKED_INTO))
    looks = [look for _, look in decode(chosen, _look, least_side=ENOUGH) if isinstance(look, _Look)]
    if not looks:
        raise ValueError(
            f"{source.name}: none of {len(chosen)} images looked at can be read, so no recipe can be chosen; "
            "name one with --preset"
        )
    mean = float(np.mean([look.mean for look in looks]))
    square = float(np.mean([look.square for look in looks]))
    return Survey(
        images=len(source),
        side=int(np.median([look.side for look in looks])),
        grey=float(np.mean([look.grey for look in looks])) >= GREY,
        mean=mean,
        std=float(np.sqrt(max(0.0, square - mean**2))),
    )


def _look(image: Image.Image) -> _Look:
    small = image if max(image.size) <= SEEN else image.resize((SEEN, SEEN))
    pixels = np.asarray(small, np.float32)  # (H, W, 3)
    grey = float(np.abs(pixels - pixels.mean(axis=2, keepdims=True)).mean()) < NEARLY
    values = pixels / 255
    return _Look(min(image.size), grey, float(values.mean()), float((values**2).mean()))
