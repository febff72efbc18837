"""Batches for the training device: from images held there, or fetched ahead by a thread.

Legend: B batch, M canvas pixels.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent import futures

import numpy as np
import torch
from torch import Tensor

from byol.files.readers import Readers
from byol.training.data.intake import ImageTensor, StreamedImages
from byol.training.device import take_device

AHEAD = 3  # batches fetched before they are asked for
LOOK = 0.1  # seconds after which whoever waits for a batch looks whether it still should
RESIDENT_SHARE = 0.4  # of the device's free memory; the rest is for networks and activations

Batch = tuple[Tensor, Tensor]  # uint8 (B, M, M, 3), float32 (B,)
Rows = Callable[[int], Tensor]  # step to the rows (B,) int64 of its images


class ResidentFeed:
    """All images are on the device; a batch is one indexing operation there."""

    waited = 0.0

    def __init__(self, images: ImageTensor, rows: Rows, device: torch.device):
        self._pixels, self._aspect = images.pixels.to(device), images.aspect.to(device)
        self._rows, self._device = rows, device

    def wait(self, step: int, given_up: Callable[[], bool] = lambda: False) -> None:
        """Every batch is ready."""

    def batch(self, step: int) -> Batch:
        """Pixels and aspects of a step."""
        rows = moved(self._rows(step), self._device)
        return self._pixels[rows], self._aspect[rows]

    def close(self) -> None:
        """Nothing to stop."""


class FetchedFeed:
    """Batches read ahead by a thread and copied to the device without waiting for it.

    `read` maps rows (B,) to a batch on the host; `last` is the number of steps of the run; `waited` counts the seconds
    spent waiting for data; `source_close` is called by `close`.
    """

    def __init__(
        self,
        read: Callable[[Tensor], Batch],
        rows: Rows,
        device: torch.device,
        last: int,
        source_close: Callable[[], None] = lambda: None,
    ):
        self._source_close = source_close
        self._read, self._rows, self._device, self._last = read, rows, device, last
        self._thread = Readers(1, "fetch")
        self._pending: dict[int, futures.Future[Batch]] = {}
        self.waited = 0.0

    def wait(self, step: int, given_up: Callable[[], bool] = lambda: False) -> None:
        """Wait until a step's batch is ready, or is `given_up`. Raises what `read` raised."""
        for ahead in range(step, max(step + 1, min(step + 1 + AHEAD, self._last))):
            if ahead not in self._pending:
                self._pending[ahead] = self._thread.submit(self._fetch, self._rows(ahead))
        started = time.perf_counter()
        while not given_up():
            if futures.wait([self._pending[step]], LOOK).done:
                self._pending[step].result()
                break
        self.waited += time.perf_counter() - started

    def batch(self, step: int) -> Batch:
        """Pixels and aspects of a step. Raises as `wait`."""
        self.wait(step)
        pixels, aspect = self._pending.pop(step).result()
        return pixels.to(self._device, non_blocking=True), aspect.to(self._device, non_blocking=True)

    def _fetch(self, rows: Tensor) -> Batch:
        take_device(self._device)  # a thread's own is the first one to begin with: pinned memory would take some of it
        pixels, aspect = self._read(rows)
        return (pixels.pin_memory(), aspect.pin_memory()) if self._device.type == "cuda" else (pixels, aspect)

    def close(self) -> None:
        """Stop the thread and the source of its images, without waiting for a disk or server that is silent."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._source_close()
        self._thread.shutdown()


Feed = ResidentFeed | FetchedFeed


def open_feed(images: ImageTensor | StreamedImages, rows: Rows, device: torch.device, last: int) -> Feed:
    """Resident if the images fit on the device (on a CPU they always do, mapped), else fetched."""
    if isinstance(images, StreamedImages):
        return FetchedFeed(images.read, rows, device, last, images.close)
    rows = _picked(images.rows, rows)
    if device.type == "cpu" or images.pixels.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return ResidentFeed(images, rows, device)
    return FetchedFeed(lambda places: (images.pixels[places], images.aspect[places]), rows, device, last)


def _picked(places: Tensor | None, rows: Rows) -> Rows:
    """Rows of images as rows of their pixels."""
    return rows if places is None else lambda step: places[rows(step)]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the host as one on the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


WINDOW = 16  # blocks whose rows are shuffled together when a source is read block by block


def seeded(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator seeded by its key alone: the same numbers whenever and wherever a step is computed."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return generator


class Order:
    """The rows of every step: each epoch is shuffled anew, and its incomplete last batch dropped.

    With `blocks` (int64, the first row of each block), blocks are shuffled, then the rows of 16 blocks at a time: for
    streams in which reading a row means reading its block.
    """

    def __init__(self, seed: int, images: int, batch_size: int, blocks: np.ndarray | None = None):
        self.seed, self.images, self.batch_size, self.blocks = seed, images, batch_size, blocks
        self._epochs: dict[int, Tensor] = {}

    def rows(self, step: int) -> Tensor:
        """The rows (batch_size,) int64 of optimizer step `step`."""
        epoch, place = divmod(step, self.images // self.batch_size)
        return self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            generator = seeded("cpu", self.seed, "order", epoch)
            kept = {e: rows for e, rows in self._epochs.items() if e == epoch - 1}  # one ahead is fetched, no more
            blocks = self.blocks
            rows = _shuffle(self.images, generator) if blocks is None else _by_blocks(blocks, self.images, generator)
            self._epochs = {**kept, epoch: rows}
        return self._epochs[epoch]


def _shuffle(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)


def _by_blocks(starts: np.ndarray, images: int, generator: torch.Generator) -> Tensor:
    ends = np.append(starts[1:], images)
    order = _shuffle(len(starts), generator).numpy()
    windows = []
    for first in range(0, len(order), WINDOW):
        rows = np.concatenate([np.arange(starts[b], ends[b]) for b in order[first : first + WINDOW]])
        windows.append(torch.from_numpy(rows)[_shuffle(len(rows), generator)])
    return torch.cat(windows)


def share(rows: Tensor, micro_batches: int, rank: int, world: int) -> Tensor:
    """The rows of one process: its part of each micro-batch of a batch (B,), one after the other."""
    return rows.view(micro_batches, world, -1)[:, rank].flatten()
