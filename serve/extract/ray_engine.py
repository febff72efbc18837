"""Extraction over a Ray cluster: Ray Data's tasks decode, its actors encode, and this process writes.

Ray retries a dead worker's task on another. All machines of the cluster need `byol`, and the bundle and the images
under the same paths (or the images behind a URL).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from byol.bundle.folder import Bundle
from byol.files.regular import SourceUnavailable
from byol.images.decode import Preprocess
from byol.images.location import Location, is_url
from byol.images.named import is_named
from byol.images.open import open_place, rows_digest
from byol.images.picture.budget import PIXELS
from byol.images.picture.pages import is_first_of_several
from byol.images.source import ImageSource, Skipped
from byol.images.surroundings import UnreadableImage
from byol.serve.encoder import Encoder, encoder_digest
from byol.serve.pipeline import Batch, require_finite
from byol.serve.providers.installed import is_plugin
from byol.text import missing, reason_of

CHUNK_IMAGES = 128  # of one decoding task: 19 MB at 224 px
WAVE_IMAGES = 262_144  # of one pass through Ray Data: listed before it begins; the actors start anew for each

Columns = dict[str, np.ndarray]


class RayEngine:
    """Computes the features of a location's images on a cluster, as an `Encoder` does here.

    `device`: cpu, cuda or a plug-in that all machines have; auto takes CUDA where the cluster has GPUs. Attributes:
    `feature_dim`, `digest`, `device`, `variant`, `reason`. Raises `ValueError` for what a cluster cannot do.
    """

    def __init__(self, bundle: Path, location: Location, device: str, batch_size: int | None, variant: str) -> None:
        if variant == "auto":
            raise ValueError("--engine ray cannot choose a variant; name one, such as --variant fp32")
        if str(location) == "-":
            raise ValueError("Ray's workers cannot read standard input; write the paths to a .txt file")
        import ray

        opened = Bundle.open(bundle)
        gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
        if device == "cuda" and gpus == 0:
            raise ValueError("this Ray cluster has no GPU; use --device cpu")
        self.device = device if is_plugin(device) else "cuda" if gpus and device != "cpu" else "cpu"
        self.reason = f"{nodes} machines with {gpus} GPUs in the Ray cluster"
        self.feature_dim, self.digest, self.variant = (
            opened.manifest.feature_dim,
            encoder_digest(opened, variant, self.device),
            variant,
        )
        self._location = _for_workers(location)
        self._here, self._rows = os.getcwdb(), ""
        self._transform = opened.manifest.preprocess.transform()
        self._arguments = (Path(bundle).resolve(), self.device, batch_size, variant)
        self._actors = gpus if self.device == "cuda" else nodes

    def batches_of(
        self, sources: Iterable[ImageSource], threads: int = 0, thumbnails: int = 0
    ) -> Generator[tuple[ImageSource, Batch], None, None]:
        """The batches of several sources, in order. `threads` is ignored: Ray schedules the decoding.

        Raises `ValueError` where thumbnails are asked for: pixels stay in the workers.
        """
        if thumbnails:
            raise ValueError("thumbnails are not made by Ray's workers; use the local engine")
        for wave in _waves(sources):
            self._rows = self._rows or rows_digest(wave[0])  # workers list the location anew, some of them much later
            try:
                yield from self._wave(wave)
            except Exception as error:
                raise _readable(error) from error

    def _wave(self, sources: list[ImageSource]) -> Iterator[tuple[ImageSource, Batch]]:
        import ray

        chunks = ray.data.from_items(
            [chunk for number, source in enumerate(sources) for chunk in _chunks(number, source)]
        )
        opener = partial(open_place, self._location, here=self._here, rows=self._rows)
        decoded = chunks.map_batches(partial(_decode, opener, self._transform), batch_size=1)
        encoded = decoded.map_batches(
            _EncodeActor,
            fn_constructor_args=self._arguments,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self._actors),
            num_gpus=1 if self.device == "cuda" else 0,
        )
        for block in encoded.iter_batches(batch_size=None, batch_format="numpy"):
            for number in np.unique(block["section"]):  # in order: a block's rows are
                mine = block["section"] == number
                yield sources[number], _batch(sources[number], {name: values[mine] for name, values in block.items()})


def _for_workers(location: Location) -> Location:
    """A location that other processes can resolve: their current folders differ."""
    if is_url(location):
        return location
    if Path(location).exists():
        return Path(location).resolve()
    return location if is_named(str(location)) else Path(location).absolute()  # a pattern


def _waves(sources: Iterable[ImageSource]) -> Iterator[list[ImageSource]]:
    wave: list[ImageSource] = []
    for source in sources:
        wave.append(source)
        if sum(map(len, wave)) >= WAVE_IMAGES:
            yield wave
            wave = []
    if wave:
        yield wave


def _chunks(number: int, source: ImageSource) -> Iterator[dict[str, Any]]:
    assert source.places is not None  # sections of a location have them
    for first in range(0, len(source), CHUNK_IMAGES):
        yield {"section": number, "first": first, "places": list(source.places[first : first + CHUNK_IMAGES])}


def _batch(source: ImageSource, rows: Columns) -> Batch:
    if lost := next(filter(None, rows["lost"]), ""):
        raise SourceUnavailable(lost)
    read = rows["reason"] == ""
    skipped = [Skipped(source.ids[row], str(rows["reason"][i])) for i, row in enumerate(rows["row"]) if not read[i]]
    indices, features = rows["row"][read].tolist(), rows["features"][read]
    require_finite(features, source, indices)
    return Batch(indices, features, skipped, several=rows["row"][rows["several"]].tolist())


# ------------------------------------------------------------------------------------------------- in workers


def _decode(opener: Callable[..., Image.Image], transform: Preprocess, chunk: Columns) -> Columns:
    """A chunk as rows: `pixels` uint8 (B, S, S, 3), and the `reason` where an image cannot be read, else "".

    `several`: whether it is the first of several pictures.

    Where the source itself cannot be read, all rows carry the reason as `lost`: Ray would turn an exception into a
    traceback. `opener`: `open_place` of the location.
    """
    places, lost = chunk["places"][0], ""
    pixels = np.zeros((len(places), transform.crop, transform.crop, 3), np.uint8)
    reasons, several = np.full(len(places), "", object), np.zeros(len(places), bool)
    for i, place in enumerate(places):
        try:
            with PIXELS:
                given = place if isinstance(place, bytes) else int(place)
                image = opener(given, least_side=transform.least_side)
                pixels[i], several[i] = transform(image), is_first_of_several(image)
        except UnreadableImage as error:
            reasons[i] = str(error)
        except ValueError as error:  # each further image would have it listed again
            reasons[i:] = lost = str(error)
            break
    return {
        "section": np.repeat(chunk["section"], len(places)),
        "row": chunk["first"][0] + np.arange(len(places)),
        "pixels": pixels,
        "reason": reasons,
        "several": several,
        "lost": np.array([lost] * len(places), object),
    }


class _EncodeActor:
    """An encoder that stays in a worker."""

    def __init__(self, bundle: Path, device: str, batch_size: int | None, variant: str) -> None:
        self._encoder = Encoder(bundle, device, batch_size, variant)

    def __call__(self, rows: Columns) -> Columns:
        read = np.flatnonzero(rows["reason"] == "")
        features = np.zeros((len(rows["row"]), self._encoder.feature_dim), np.float32)
        for start in range(0, len(read), self._encoder.batch_size):
            batch = read[start : start + self._encoder.batch_size]
            features[batch] = self._encoder.encode(rows["pixels"][batch])
        return {"features": features, **{name: values for name, values in rows.items() if name != "pixels"}}


# ------------------------------------------------------------------------------------------------- the cluster


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine for the block, reachable from here only.

    Raises `ValueError` when Ray is missing or the address does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    if not address:  # all of Ray's ports on the loopback address; its own way on macOS and Windows
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(missing("Ray", "ray", "--engine ray")) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with tempfile.TemporaryDirectory(prefix="byol-", ignore_cleanup_errors=True) as empty:
        try:
            with contextlib.chdir(empty):  # Ray's workers would import from the current folder first
                ray.init(address, **quiet) if address else ray.init("local", include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises a bare one when its processes do not come up in time
            trouble = f"no Ray cluster answers at {address}" if address else "Ray cannot start a cluster here"
            raise ValueError(f"{trouble}: {reason_of(error)}") from error
        _settle()
        _take_back(handlers)
        try:
            yield
        finally:
            ray.shutdown()


def _take_back(handlers: Mapping[signal.Signals, Any]) -> None:
    """Restore our signal handlers: Ray's end the process at once, sometimes with a page of addresses.

    None stands for one in C, of the program that embeds this Python. Unless Ray has replaced it, it stays.
    """
    for number, handler in handlers.items():
        if handler is None and signal.getsignal(number) is None:
            continue
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _settle() -> None:
    """Keep blocks in order and Ray quiet."""
    import ray.data

    settings = ray.data.DataContext.get_current()
    settings.execution_options.preserve_order = True
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _readable(error: Exception) -> Exception:
    """A worker's own error without Ray's wrapping, or what happened to the cluster."""
    from ray.exceptions import RayError, RayTaskError, UserCodeException

    links = list(_links(error))
    ours = next((link for link in links if isinstance(link, ValueError | MemoryError) and not _is_wrapped(link)), None)
    if ours is not None:
        kind = next(kind for kind in (SourceUnavailable, ValueError, MemoryError) if isinstance(ours, kind))
        return kind(reason_of(ours))
    lost = [
        link for link in links if isinstance(link, RayError) and not isinstance(link, RayTaskError | UserCodeException)
    ]
    if lost:  # a machine, its memory or disk, a worker that was killed again and again
        lines = str(lost[-1]).strip().splitlines() or [type(lost[-1]).__name__]
        said = reason_of(ValueError(lines[-1 if getattr(lost[-1], "actor_init_failed", False) else 0]))
        return ValueError(f"Ray: {said}; finished parts are kept, run the same command again to continue")
    return error


def _links(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _is_wrapped(error: BaseException) -> bool:
    """Whether this is Ray's wrapper, which also has the type of what it wraps."""
    return hasattr(error, "cause")
