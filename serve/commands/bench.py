"""`byol bench`: how fast this machine runs a bundle, from JPEG to features."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import click

from byol.console import note_device, show_json
from byol.images.location import Location
from byol.options import LOCATION, FiniteRange
from byol.serve.commands.options import BUNDLE, device_option, json_option, variant_option

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from byol.images.source import ImageSource
    from byol.serve.choices import Choice
    from byol.serve.encoder import Encoder

BATCHES = (1, 2, 8, 32, 128, 256)
PICTURES = 64
SIZE = (500, 375)  # of the generated pictures: ImageNet's usual one


@dataclass(frozen=True)
class Timing:
    """One row: how long a call took, and how many images per second that makes."""

    stage: str
    batch: int
    images_per_second: float
    p50_ms: float
    p99_ms: float


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--images", type=LOCATION, help="Pictures to measure with  [default: generated JPEGs of 500 x 375]")
@click.option(
    "--seconds", type=FiniteRange(0.05, 600), default=2.0, show_default=True, help="Seconds to measure each row for."
)
@variant_option("Which of the bundle's encoders to measure stage by stage")
@device_option
@json_option
def bench(bundle: Path, images: Location | None, seconds: float, variant: str, device: str, as_json: bool) -> None:
    """Measure BUNDLE on this machine: decoding, preprocessing, the session at batch 1 to 256, and all together.

    Then, side by side, every device and variant that runs here, and which is fastest; with --device, that one's only.
    """
    import numpy as np

    from byol.images.open import open_source
    from byol.serve.choices import as_json as choices_as_json
    from byol.serve.choices import measure_choices, open_choices
    from byol.serve.encoder import Encoder

    encoder = Encoder(bundle, device, batch_size=None, variant=variant)
    note_device(device, encoder.device, encoder.reason)
    source = open_source(images) if images else generated_pictures()
    pictures = source.subset(range(min(PICTURES, len(source))))
    transform = encoder.manifest.preprocess.transform()
    decoded = [_opened(pictures, i, transform.least_side) for i in range(len(pictures))]
    pixels = np.stack([transform(picture) for picture in decoded])  # (N, S, S, 3)
    rows = measure(encoder, pictures, decoded, pixels, seconds)
    choices = measure_choices(open_choices(bundle, device), bundle, pixels, seconds)
    if as_json:
        facts = {"variant": encoder.variant, "device": encoder.device, "image_size": encoder.image_size}
        show_json({**facts, "rows": [asdict(row) for row in rows], **choices_as_json(choices)})
        return
    click.echo(f"{'':<26}{'batch':>6}{'images/s':>12}{'p50 ms':>10}{'p99 ms':>10}")
    for row in rows:
        click.echo(f"{row.stage:<26}{row.batch:>6}{row.images_per_second:>12.1f}{row.p50_ms:>10.2f}{row.p99_ms:>10.2f}")
    _show(choices)


def _show(choices: Sequence[Choice]) -> None:
    from byol.serve.choices import best

    click.echo(f"\n{'device':<12}{'variant':<10}{'batch':>10}{'images/s':>12}{'cosine to fp32':>20}")
    for row in choices:
        click.echo(f"{row.device:<12}{row.variant:<10}{row.batch:>10}{row.images_per_second:>12.1f}{row.cosine:>20.6f}")
    click.echo(f"fastest: {best(choices).options}; with the features of fp32: {best(choices, ['fp32']).options}")


def measure(
    encoder: Encoder, pictures: ImageSource, decoded: list[Image.Image], pixels: np.ndarray, seconds: float
) -> list[Timing]:
    """The rows of one encoder, on pictures that are also given decoded and preprocessed: uint8 (N, S, S, 3)."""
    import numpy as np

    transform = encoder.manifest.preprocess.transform()
    turn, name = cycle(range(len(pictures))), encoder.manifest.onnx.input

    rows = [
        _timed("decode, one thread", 1, lambda: pictures.open(next(turn), transform.least_side), seconds),
        _timed("preprocess, one thread", 1, lambda: transform(decoded[next(turn)]), seconds),
    ]
    for batch in BATCHES:
        feeds = {name: np.resize(pixels, (batch, *pixels.shape[1:]))}
        rows.append(_timed("session", batch, partial(encoder.session.run, feeds), seconds))
    rows.append(_timed("one image to features", 1, lambda: encoder([decoded[next(turn)]]), seconds))
    rows.append(_end_to_end(encoder, pictures, seconds))
    return rows


def _opened(pictures: ImageSource, place: int, least_side: int) -> Image.Image:
    try:
        return pictures.open(place, least_side)
    except ValueError as error:
        raise ValueError(f"{pictures.ids[place]} cannot be read ({error}); remove it") from error


def _timed(stage: str, batch: int, call: Callable[[], object], seconds: float) -> Timing:
    import numpy as np

    call()
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(times) < 3:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    p50, p99 = 1000 * np.percentile(times, (50, 99))
    return Timing(stage, batch, round(batch * len(times) / sum(times), 2), round(float(p50), 3), round(float(p99), 3))


def _end_to_end(encoder: Encoder, pictures: ImageSource, seconds: float) -> Timing:
    """Batches of the encoder's own size from an endless source, with all threads; a call is one batch."""
    import numpy as np

    from byol.images.columns import Computed
    from byol.images.source import ImageSource
    from byol.serve.pipeline import run_ahead

    count = 10**9
    labels = pictures.labels.take(np.zeros(0, int))
    names = Computed(count, str)

    def read(i: int, least_side: int = 0) -> Image.Image:
        return pictures.open(i % len(pictures), least_side)

    endless = ImageSource("endless", names, labels, [], read)
    times: list[float] = []
    batches = run_ahead(encoder.batches_of([endless]))
    next(batches)
    started = before = time.perf_counter()
    for _ in batches:
        now = time.perf_counter()
        times.append(now - before)
        before = now
        if now - started > seconds and len(times) >= 3:
            break
    p50, p99 = 1000 * np.percentile(times, (50, 99))
    rate = encoder.batch_size * len(times) / sum(times)
    return Timing(
        "end to end, all threads", encoder.batch_size, round(rate, 2), round(float(p50), 3), round(float(p99), 3)
    )


def generated_pictures() -> ImageSource:
    """Smooth random JPEGs in memory, which decode like photographs of their size."""
    import numpy as np
    from PIL import Image

    from byol.images.columns import Computed, Labels
    from byol.images.picture.read import read_image
    from byol.images.source import ImageSource

    files = []
    for seed in range(16):
        coarse = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())

    def read(i: int, least_side: int = 0) -> Image.Image:
        return read_image(io.BytesIO(files[i]), least_side=least_side)

    return ImageSource("generated", Computed(len(files), str), Labels.none(len(files)), [], read)
