"""From encoded pictures of many requests to outputs: decoding threads, and one thread that runs what is there.

Batches never wait for company: while one runs, the images that become ready are the next. So a lone image costs what it
costs alone, and under load batches grow by themselves, on a GPU and on a CPU alike.
Shapes: N images of a request, B batch, S the encoder's image size, D outputs per image.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from byol.files.regular import SourceUnavailable
from byol.images.picture.budget import PIXELS
from byol.images.picture.read import decode_image
from byol.images.surroundings import UnreadableImage
from byol.serve.pipeline import Pipeline
from byol.serve.server.bounds import Allowance, Bounds, TooManyPixels
from byol.serve.server.measures import Measures
from byol.serve.server.refusals import BadImage, Refused

# Images per run. On two cores a ResNet-18 at 224 px gains 11 % from 16 over one at a time, and 2 % more from 32, which
# lets a picture that comes alone wait twice as long. A GPU takes what its session was prepared for.
MOST_ON_CPU = 16

Item = bytes | np.ndarray  # an encoded picture, or a preprocessed one: uint8 (S, S, 3)
_Job = tuple[np.ndarray, "Future[np.ndarray]", float]


class Engine:
    """One model: `await engine(items)` gives its outputs, float32 (N, D). `name` is the model's in protocols.

    `pool` decodes for all models of the server.
    """

    def __init__(
        self, name: str, pipeline: Pipeline, pool: ThreadPoolExecutor, bounds: Bounds, measures: Measures
    ) -> None:
        self.name, self.pipeline = name, pipeline
        self._pool, self._bounds, self._measures = pool, bounds, measures
        self._transform = pipeline.manifest.preprocess.transform()
        most = pipeline.batch_size if pipeline.device == "cuda" else min(MOST_ON_CPU, pipeline.batch_size)
        self._runner = _Runner(name, pipeline.encode, most, measures, bounds.computed)

    async def __call__(
        self, items: Sequence[Item], then: Callable[[np.ndarray], Awaitable[np.ndarray]] | None = None
    ) -> np.ndarray:
        """Outputs in the order of the items, or what `then` makes of them before their places in the queue are free.

        Raises `BadImage` for the first that cannot be used, and `Refused`. A caller that is cancelled takes what has
        not begun out of the queue.
        """
        with self._bounds.places(len(items)):
            allowance = Allowance(self._bounds.pixels)
            work = [self._one(i, item, allowance) for i, item in enumerate(items)]
            found = await asyncio.gather(*work, return_exceptions=True)  # to the last: none is left in a thread
            for output in found:
                if isinstance(output, BaseException):
                    raise output
            self._measures.images(self.name, len(items))
            outputs = np.stack([output for output in found if isinstance(output, np.ndarray)])
            return outputs if then is None else await then(outputs)

    async def _one(self, index: int, item: Item, allowance: Allowance) -> np.ndarray:
        pixels = item
        if isinstance(item, bytes):
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._pool, self._decoded, index, item, allowance)
        assert isinstance(pixels, np.ndarray)
        output = await asyncio.wrap_future(self._runner.submit(pixels))
        if not np.isfinite(output).all():
            raise Refused(500, f"the model's outputs of image {index} are not finite; train it again")
        return output

    def _decoded(self, index: int, content: bytes, allowance: Allowance) -> np.ndarray:
        """An encoded picture as the encoder takes it, (S, S, 3)."""
        try:
            with self._measures.stage("decode"), PIXELS:
                return self._transform(decode_image(content, self._transform.least_side, allowance.take))
        except TooManyPixels as error:
            raise Refused(413, str(error)) from error
        except SourceUnavailable as error:
            raise Refused(503, str(error)) from error
        except UnreadableImage as error:
            raise BadImage(index, str(error)) from error

    def close(self) -> None:
        """Finish what was submitted, then stop."""
        self._runner.close()


class _Runner:
    """A thread that runs batches of what is ready, up to `most` at a time, in the order in which it became ready."""

    def __init__(
        self,
        name: str,
        encode: Callable[[np.ndarray], np.ndarray],
        most: int,
        measures: Measures,
        computed: Callable[[int, float], None],
    ) -> None:
        self._encode, self._most, self._measures, self._computed = encode, most, measures, computed
        self._ready: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"compute-{name}", daemon=True)
        self._thread.start()

    def submit(self, pixels: np.ndarray) -> Future[np.ndarray]:
        """Queue one image (S, S, 3); the future gives its outputs (D,)."""
        future: Future[np.ndarray] = Future()
        self._ready.put((pixels, future, time.perf_counter()))
        return future

    def close(self) -> None:
        self._ready.put(None)
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._batch()
            wanted = [job for job in batch if job[1].set_running_or_notify_cancel()]
            if wanted:
                self._run(wanted)

    def _batch(self) -> tuple[list[_Job], bool]:
        """Wait for one image, then take what else is there; and whether the end has come."""
        batch, job = [], self._ready.get()
        while job is not None:
            batch.append(job)
            if len(batch) == self._most:
                return batch, False
            try:
                job = self._ready.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _run(self, batch: list[_Job]) -> None:
        started = time.perf_counter()
        try:
            outputs = self._encode(np.stack([pixels for pixels, _, _ in batch]))  # (B, D)
        except Exception as error:  # the device's fault: pixels of this shape and type have no faults of their own
            for _, future, _ in batch:
                future.set_exception(error)
            return
        seconds = time.perf_counter() - started
        self._measures.spent("compute", seconds)
        self._computed(len(batch), seconds)
        for (_, future, since), output in zip(batch, outputs, strict=True):
            self._measures.spent("wait", started - since)
            future.set_result(output)
