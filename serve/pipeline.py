"""Run a bundle's graph: decoding threads, batches, one session.

Shapes: N images, B batch, S the encoder's image size, D outputs per image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from byol.bundle.folder import Bundle
from byol.bundle.parity import BF16, GATES, compare_features
from byol.images.decode import decode_all
from byol.images.picture.budget import PIXELS
from byol.images.picture.pages import is_first_of_several
from byol.images.source import ImageSource, Skipped
from byol.images.surroundings import UnreadableImage
from byol.limits import MAX_BATCH_SIZE
from byol.machine import DEVICES
from byol.serve.features.thumbnails import thumbnail
from byol.serve.items import ImageItem, items_source
from byol.serve.providers.plugins import unusable
from byol.serve.session import Feeds, Session, open_session
from byol.strict_json import fits, require_legal

T = TypeVar("T")

# The CPU gains nothing from larger batches; a GPU needs them.
BATCH_SIZES = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True)
class Batch:
    """`indices` into the source, `outputs` float32 (len(indices), D), the images skipped on the way, and if asked for
    the `thumbnails` of those at `indices`. `several`: which of these are the first of several pictures in a file.
    """

    indices: list[int]
    outputs: np.ndarray
    skipped: list[Skipped]
    thumbnails: list[bytes] = field(default_factory=list)
    several: list[int] = field(default_factory=list)


class Pipeline:
    """A session on a graph that takes preprocessed images, fed with decoded ones.

    `dim` D. Attributes: `manifest`, `image_size` S, `device` and `reason` (the one used, and why), `batch_size`,
    `session`. Raises `ValueError` for a batch size out of range.
    """

    def __init__(self, bundle: Bundle, session: Session, batch_size: int | None, dim: int, output: int = 0) -> None:
        self.manifest, self.image_size, self.dim = bundle.manifest, bundle.manifest.image_size, dim
        self.device, self.reason = session.device, session.reason
        self.batch_size = batch_size or BATCH_SIZES.get(self.device, BATCH_SIZES["cpu"])
        self.session, self._output = session, output
        self._transform = bundle.manifest.preprocess.transform()

    def __call__(self, images: Sequence[ImageItem] | np.ndarray) -> np.ndarray:
        """Outputs of paths, Pillow images or uint8 arrays (H, W, 3) of any size: float32 (N, D), in their order.

        Thread-safe. Raises `ValueError` naming the item when one cannot be used.
        """
        source = items_source(images)
        if len(source) == 1:
            return self._one(source)
        outputs = np.empty((len(source), self.dim), np.float32)
        for batch in self.batches(source):
            if batch.skipped:
                raise ValueError(f"{batch.skipped[0].path}: {batch.skipped[0].reason}")
            outputs[batch.indices] = batch.outputs
        return outputs

    def _one(self, source: ImageSource) -> np.ndarray:
        """Outputs of one image, in the caller's thread: on a busy server, waking another takes longer than decoding."""
        try:
            with PIXELS:
                pixels = self._transform(source.open(0, self._transform.least_side))  # (S, S, 3)
        except UnreadableImage as error:
            raise ValueError(f"{source.ids[0]}: {error}") from error
        return self._checked(pixels[None], source, [0])

    def batches(self, source: ImageSource, threads: int = 0) -> Iterator[Batch]:
        """Decode in `threads` threads (0: one per usable core) while earlier images are computed.

        The last batch may hold no image, only what was skipped. Memory does not grow with the source.
        """
        return (batch for _, batch in self.batches_of([source], threads))

    def batches_of(
        self, sources: Iterable[ImageSource], threads: int = 0, thumbnails: int = 0
    ) -> Generator[tuple[ImageSource, Batch], None, None]:
        """The batches of several sources, one after the other; no batch mixes sources, but decoding runs ahead.

        `thumbnails`: their side in pixels; 0: none.
        """
        pixels = np.empty((self.batch_size, self.image_size, self.image_size, 3), np.uint8)  # (B, S, S, 3)
        current: ImageSource | None = None
        batch = Batch([], pixels[:0], [])

        def seen(image: Image.Image) -> tuple[np.ndarray, list[bytes], bool]:
            square = self._transform(image)
            return square, [thumbnail(square, thumbnails)] if thumbnails else [], is_first_of_several(image)

        for source, index, result in decode_all(sources, seen, threads, self._transform.least_side):
            if current is not None and current is not source and (batch.indices or batch.skipped):
                yield current, self._computed(batch, pixels, current)
                batch = Batch([], pixels[:0], [])
            current = source
            if isinstance(result, UnreadableImage):
                batch.skipped.append(Skipped(source.ids[index], str(result)))
                continue
            pixels[len(batch.indices)], pictures, is_first = result
            batch.indices.append(index)
            batch.thumbnails.extend(pictures)
            batch.several.extend([index] if is_first else [])
            if len(batch.indices) == self.batch_size:
                yield source, self._computed(batch, pixels, source)
                batch = Batch([], pixels[:0], [])
        if current is not None and (batch.indices or batch.skipped):
            yield current, self._computed(batch, pixels, current)

    def _computed(self, batch: Batch, pixels: np.ndarray, source: ImageSource) -> Batch:
        return replace(batch, outputs=self._checked(pixels[: len(batch.indices)], source, batch.indices))

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Outputs (B, D) float32 of preprocessed images: uint8 (B, S, S, 3), B <= batch_size."""
        count = len(pixels)
        if count == 0:
            return np.empty((0, self.dim), np.float32)
        if self.device == "cuda" and count < self.batch_size:  # few shapes: CUDA prepares itself for each
            padded = np.zeros((min(self.batch_size, next_power_of_two(count)), *pixels.shape[1:]), np.uint8)
            padded[:count] = pixels
            pixels = padded
        outputs: np.ndarray = self.session.run({self.manifest.onnx.input: pixels})[self._output][:count]
        return outputs

    def _checked(self, pixels: np.ndarray, source: ImageSource, indices: list[int]) -> np.ndarray:
        outputs = self.encode(pixels)
        require_finite(outputs, source, indices)
        return outputs


def next_power_of_two(count: int) -> int:
    """The smallest power of two at or above `count` >= 1."""
    return 1 << (count - 1).bit_length()


def require_finite(outputs: np.ndarray, source: ImageSource, indices: Sequence[int]) -> None:
    """Raise `ValueError` naming the first image whose outputs (B, D) are not finite."""
    bad = np.flatnonzero(~np.isfinite(outputs).all(1))
    if len(bad):
        raise ValueError(f"the encoder's features of {source.ids[indices[bad[0]]]} are not finite; train it again")


def open_graph(
    bundle: Bundle,
    name: str,
    device: str,
    batch_size: int | None = None,
    shares_cores: bool = False,
    pictures: Sequence[tuple[int, int]] = (),
    precision: str = "fp32",
) -> Session:
    """A session on one graph of a bundle, hashed and judged first. A plug-in must reproduce its golden outputs, too.

    `pictures`: heights and widths that the graph for any size will be given, besides its own S. `precision`: as of
    `open_session`. Raises `BundleError`, `DeviceError`, `SessionError`.
    """
    is_legal = batch_size is None or (fits(batch_size, "int") and 1 <= batch_size <= MAX_BATCH_SIZE)
    require_legal(is_legal, "batch_size", batch_size, f"a whole number, 1 to {MAX_BATCH_SIZE}")
    manifest, size = bundle.manifest, bundle.manifest.image_size

    def warm_up(device: str) -> Feeds:
        batch = batch_size or BATCH_SIZES["cuda"] if device == "cuda" else 1  # CUDA prepares itself for each shape
        return {manifest.onnx.input: np.zeros((batch, size, size, 3), np.uint8)}

    session = open_session(bundle.model(name, pictures), device, warm_up, shares_cores, precision)
    if session.device not in DEVICES:
        problem = GATES[BF16 if precision == BF16 else name].problem(*golden_deviation(bundle, name, session))
        if problem:
            raise unusable(session.device, f"it does not reproduce the golden features of {name} ({problem})")
    return session


def golden_deviation(bundle: Bundle, name: str, session: Session) -> tuple[float, float]:
    """(largest relative error, smallest cosine) of a session on a graph's golden inputs. Raises `SessionError`."""
    images, expected = bundle.golden(name)
    return compare_features(expected, session.run({bundle.manifest.onnx.input: images})[0])


def run_ahead(items: Generator[T, None, None], most: int = 2) -> Iterator[T]:
    """The same items, computed by a thread at most `most` ahead of the caller."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="compute") as pool:
        pending: deque[Future[Any]] = deque(pool.submit(next, items, end) for _ in range(most))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(pool.submit(next, items, end))
                yield item
        finally:
            for future in pending:
                future.cancel()
            pool.submit(items.close).result()  # in its own thread, after what it was making
