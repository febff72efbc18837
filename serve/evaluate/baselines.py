"""What an encoder is measured beside, on the very same images: raw pixels, and the same architecture untrained.

Shapes: N images, B batch, S the encoder's image size, R the side of the reduced images, D features.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from byol.bundle.folder import Bundle
from byol.children import run_command
from byol.serve.encoder import Encoder
from byol.serve.evaluate.sets import Evaluation
from byol.serve.features.read import Features
from byol.text import missing, reason_of

SIDE = 32  # R in pixels, at most
LIBRARIES = ("torchvision", "timm")  # whose architectures can be built anew


class Compared(Encoder):
    """An encoder whose outputs hold, in further columns, what it is measured beside: one decoding serves all.

    `columns`: where its own features, those of the `untrained` bundle (if there is one) and the pixels stand.
    `feature_dim` counts all columns. Raises as `Encoder`.
    """

    def __init__(self, bundle: Path, device: str, untrained: Path | None = None) -> None:
        super().__init__(bundle, device)
        self._untrained = Encoder(untrained, self.device, self.batch_size) if untrained else None
        self._side = min(SIDE, self.image_size)
        widths = {"encoder": self.feature_dim}
        if self._untrained:
            widths["untrained"] = self._untrained.feature_dim
        widths["pixels"] = 3 * self._side**2
        ends = np.cumsum(list(widths.values())).tolist()
        self.columns = {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}
        self.dim = self.feature_dim = ends[-1]

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """All columns float32 of preprocessed images: uint8 (B, S, S, 3), B <= batch_size."""
        parts = [super().encode(pixels)]
        if self._untrained:
            parts.append(self._untrained.encode(pixels))
        return np.concatenate([*parts, pixel_features(pixels, self._side)], axis=1)

    def split(self, data: Evaluation) -> Evaluation:
        """What was encoded, as the evaluation of the encoder alone with its `baselines` beside it."""
        parts = {name: _columns(data, columns) for name, columns in self.columns.items()}
        return replace(parts.pop("encoder"), baselines=parts)


def pixel_features(images: np.ndarray, side: int) -> np.ndarray:
    """Images uint8 (B, S, S, 3) reduced to `side` R (bicubic, antialiased), as rows float32 (B, 3 R R) in 0..1."""
    size = (side, side)
    reduced = images if images.shape[1] == side else np.stack([_resized(image, size) for image in images])
    return reduced.reshape(len(images), -1).astype(np.float32) / 255


def chance(data: Evaluation) -> float:
    """The accuracy, 0 to 1, to expect of guesses: 1 / C of the training classes."""
    return 1 / len(set(data.train.labels))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def open_compared(bundle: Path, device: str) -> tuple[Compared, str]:
    """A bundle's encoder and what it is measured beside; and why the untrained encoder is missing, if it is.

    The untrained one is exported by another process, as torch has no place in this one, into a temporary folder.
    Raises as `Encoder`.
    """
    if lacks := _why_not_untrained(Bundle.open(bundle)):
        return Compared(bundle, device), lacks
    try:
        place = tempfile.TemporaryDirectory(prefix="byol-untrained-")
    except OSError as error:
        return Compared(bundle, device), f"there is no place to build it: {reason_of(error)}; set TMPDIR to another"
    with place as folder:
        untrained = Path(folder) / "bundle"
        lacks = run_command("export", str(bundle.absolute()), "--untrained", "--out", str(untrained))
        return Compared(bundle, device, None if lacks else untrained), lacks


def _why_not_untrained(bundle: Bundle) -> str:
    library = bundle.manifest.architecture.library
    if library not in LIBRARIES:
        return f"its architecture is of {library!r}, which byol cannot build; expected {', '.join(LIBRARIES)}"
    if importlib.util.find_spec("torch") is None:
        return missing("torch", "train", "building it")
    return ""


def _columns(data: Evaluation, columns: slice) -> Evaluation:
    def part(features: Features) -> Features:
        return replace(features, x=features.x[:, columns])

    train = part(data.train)
    return replace(data, train=train, test=train if data.one_set else part(data.test))
