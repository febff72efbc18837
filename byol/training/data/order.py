"""Which images each optimizer step sees, and all other random numbers: functions of the seed and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WINDOW = 16  # blocks whose rows are shuffled together when a source is read block by block


def seeded(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator that is a function of its key: the same numbers whenever and wherever a step is computed."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return generator


class Order:
    """The rows of every step: each epoch is a shuffle of its own, its rest dropped.

    With `blocks` (int64, the first row of each block), blocks are shuffled, and the rows of 16 blocks at a time: for
    streams in which a row costs the reading of its block.
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


def split_halves(labels: Sequence[str]) -> tuple[list[int], list[int]]:
    """Two halves with the same class proportions: every class's images in turn to the first and the second."""
    counts: dict[str, int] = {}
    halves: tuple[list[int], list[int]] = ([], [])
    for index, label in enumerate(labels):
        counts[label] = counts.get(label, -1) + 1
        halves[counts[label] % 2].append(index)
    return halves
