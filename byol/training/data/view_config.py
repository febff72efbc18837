"""`ViewConfig`: the settings of one random view, checked when it is built. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from byol.strict_json import check_fields, require_legal


@dataclass(frozen=True)
class ViewConfig:
    """One random view, in the order of application: crop, flip, jitter, grey, blur, solarize.

    Defaults: view 1 of the paper (appendix B, table 6).
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a crop covers."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width/height of a crop, drawn log-uniformly."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    jitter: float = 0.8
    """Probability that the four colour changes are applied, in random order."""
    brightness: float = 0.4
    """Strength of the brightness change."""
    contrast: float = 0.4
    """Strength of the contrast change: a factor within 1 +- strength."""
    saturation: float = 0.2
    """Strength of the saturation change: a factor within 1 +- strength."""
    hue: float = 0.1
    """Strength of the hue change, as a share of the colour circle (at most 0.5)."""
    additive_brightness: bool = True
    """Add a number within +- brightness (the paper's released code); else multiply by 1 +- it (torchvision)."""
    grey: float = 0.2
    """Probability of conversion to greyscale."""
    blur: float = 1.0
    """Probability of a Gaussian blur, kernel a tenth of the view's side."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels, drawn uniformly."""
    solarize: float = 0.0
    """Probability of inverting the values of 0.5 and above."""
    vertical_flip: float = 0.0
    """Probability of an upside-down flip, for images without an up, as from above or through a microscope."""
    cutout: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest share of the view that a rectangle of the mean colour covers; 0: none."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("flip", "jitter", "grey", "blur", "solarize", "vertical_flip"):
            require_legal(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability, 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            require_legal(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        require_legal(0 <= self.hue <= 0.5, "hue", self.hue, "0 to 0.5")
        low, high = self.crop_area
        require_legal(0 < low <= high <= 1, "crop_area", self.crop_area, "two numbers, 0 < smallest <= largest <= 1")
        low, high = self.crop_aspect
        require_legal(0 < low <= high, "crop_aspect", self.crop_aspect, "two numbers, 0 < smallest <= largest")
        low, high = self.blur_sigma
        require_legal(0 < low <= high, "blur_sigma", self.blur_sigma, "two numbers, 0 < smallest <= largest")
        low, high = self.cutout
        require_legal(0 <= low <= high < 1, "cutout", self.cutout, "two numbers, 0 <= smallest <= largest < 1")
