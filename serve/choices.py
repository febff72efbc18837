"""Every device and variant that a bundle runs with here, measured side by side. For `byol bench`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byol.console import note
from byol.machine import driver_problem

if TYPE_CHECKING:
    import numpy as np

    from byol.serve.encoder import Encoder

WORTH_IT = 1.05  # how much faster a choice must be to be named: than fp32 on the default device, or than any fp32


@dataclass(frozen=True)
class Choice:
    """One row: a session's speed at its own batch size, and its worst cosine to the bundle's golden fp32 features."""

    device: str
    variant: str
    batch: int
    images_per_second: float
    cosine: float

    @property
    def options(self) -> str:
        """The options that choose it."""
        return f"--device {self.device}" + ("" if self.variant == "fp32" else f" --variant {self.variant}")


def open_choices(bundle: Path, device: str) -> list[Encoder]:
    """An encoder for each variant that runs on `device`, for `auto` on each device that is installed.

    Notes why others do not run.
    """
    from byol.bundle.folder import Bundle
    from byol.bundle.manifest import VARIANTS
    from byol.bundle.parity import BF16
    from byol.serve.encoder import Encoder
    from byol.serve.errors import DeviceError
    from byol.serve.providers.installed import is_plugin, plugin_packages

    cuda = [] if driver_problem() else ["cuda"]
    files = Bundle.open(bundle).manifest.files
    held = [variant for variant, file in VARIANTS.items() if file in files]
    encoders, reasons = list[Encoder](), dict[str, None]()
    for where in ["cpu", *cuda, *plugin_packages()] if device == "auto" else [device]:
        for variant in [*held, BF16] if is_plugin(where) else held:
            try:
                encoders.append(Encoder(bundle, where, variant=variant))
            except DeviceError as error:
                reasons[str(error)] = None
    for reason in reasons:
        note(reason)
    return encoders


def measure_choices(encoders: Sequence[Encoder], bundle: Path, pixels: np.ndarray, seconds: float) -> list[Choice]:
    """Run the encoders in turn on pixels uint8 (N, S, S, 3) for `seconds` each, so that all see the same machine."""
    import numpy as np

    from byol.bundle.folder import Bundle
    from byol.bundle.parity import compare_features

    images, expected = Bundle.open(bundle).golden()
    batches = [np.resize(pixels, (encoder.batch_size, *pixels.shape[1:])) for encoder in encoders]
    cosines = [compare_features(expected, encoder.encode(images))[1] for encoder in encoders]
    times: list[list[float]] = [[] for _ in encoders]
    until = time.perf_counter() + seconds * len(encoders)
    while len(times[0]) < 4 or time.perf_counter() < until:
        for encoder, batch, taken in zip(encoders, batches, times, strict=True):
            before = time.perf_counter()
            encoder.encode(batch)
            taken.append(time.perf_counter() - before)
    rates = [encoder.batch_size / float(np.median(taken[1:])) for encoder, taken in zip(encoders, times, strict=True)]
    return [
        Choice(encoder.device, encoder.variant, encoder.batch_size, round(rate, 2), round(cosine, 6))
        for encoder, rate, cosine in zip(encoders, rates, cosines, strict=True)
    ]


def best(choices: Sequence[Choice], variants: Sequence[str] = ()) -> Choice:
    """The fastest of some variants (none: of all), if it is clearly faster than fp32 on what `--device auto` takes.

    Fewer bits give other features, which do not mix with those of fp32: they must be clearly faster than any fp32.
    """
    among = [choice for choice in choices if not variants or choice.variant in variants]
    usual = next((choice for choice in among if choice.options == "--device cuda"), among[0])
    fastest = max(among, key=_rate)
    if fastest.images_per_second <= WORTH_IT * usual.images_per_second:
        return usual
    exact = max((choice for choice in among if choice.variant == "fp32"), key=_rate, default=fastest)
    return exact if fastest.images_per_second <= WORTH_IT * exact.images_per_second else fastest


def _rate(choice: Choice) -> float:
    return choice.images_per_second


def as_json(choices: Sequence[Choice]) -> dict[str, Any]:
    """The rows, and the options of the fastest: of all, and of those with the features of fp32."""
    fastest = {"fastest": best(choices).options, "fastest_fp32": best(choices, ["fp32"]).options}
    return {"choices": [asdict(choice) for choice in choices], **fastest}
