"""The processes of a training job, connected by gloo or NCCL. A launcher starts them: ours, torchrun, Slurm, MPI."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from byol.children import MEETING, RANKS, speaks_for_job
from byol.signals import HANG_UP, Ended, handled
from byol.text import reason_of

T = TypeVar("T")
PATIENCE = timedelta(days=365)  # a process that dies is noticed at once: its connections close


class LostProcess(Ended):
    """Another process of the job is gone."""


@dataclass(frozen=True)
class World:
    """This process, one of `size`. With one process, every method is the identity.

    `any`, `wait`, `tell` and `first_then_others` wait for a process as long as it lives. The other methods are
    collectives that time out after minutes: no process may do long work of its own before them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    patient: Any = field(default=None, repr=False)  # the group of all processes, by gloo, without a time-out

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    @property
    def group(self) -> str:
        """The name of the group of all processes, for functional collectives."""
        return str(dist.group.WORLD.group_name) if dist.group.WORLD is not None else ""

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, rows: Tensor) -> Tensor:
        """All processes' rows (B, ...), one after the other: (R * B, ...)."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])  # on the CPU: nothing waits for a GPU
        dist.all_reduce(votes, group=self.patient)
        return bool(votes)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def tell(self, text: str) -> str:
        """The text of the first process, in every process."""
        if self.size == 1:
            return text
        content = torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
        length = torch.tensor([len(content)])
        dist.broadcast(length, 0, group=self.patient)
        content = content if self.first else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, 0, group=self.patient)
        return content.numpy().tobytes().decode()

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Do the same in every process, the first before the others, which find its results in the cache."""
        if self.size == 1:
            return work()
        result = work() if self.first else None
        self.wait()
        if not self.first:
            result = work()
        self.wait()
        return result  # type: ignore[return-value]

    def require_same(self, value: int, what: str) -> None:
        """Raises `ValueError` when `value` is not the same in all processes."""
        if self.size > 1:
            found = self.gather(torch.tensor([value])).tolist()
            if len(set(found)) > 1:
                raise ValueError(
                    f"the processes of this job differ in their {what}: {found}; give them one shared disk"
                )


@contextmanager
def joined() -> Iterator[World]:
    """The world a launcher started this process in; without a launcher, this process alone.

    Raises `ValueError` for an environment no launcher sets, and `LostProcess` instead of the errors that follow the
    loss of another process.
    """
    rank, size = launched_as()
    if size == 1:
        yield World()
        return
    _connect(rank, size)
    try:
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield World(rank, size, _local_rank(World(rank, size)), patient)
    except RuntimeError as error:
        if _is_lost(error):
            raise LostProcess("another process of this job is gone; continue with --resume") from error
        speaks_for_job()
        raise
    except BaseException:
        speaks_for_job()  # before its connections close, and the others have something to say
        raise
    finally:
        dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    text = str(error)
    network = isinstance(error, dist.DistBackendError | dist.DistNetworkError)
    return network or "Connection closed by peer" in text or "Connection reset by peer" in text


def launched_as() -> tuple[int, int]:
    """This process's number and the number of processes that a launcher started: (0, 1) without one.

    `WORLD_SIZE` decides. Slurm and MPI have their own names for the number of a process. Raises `ValueError` for an
    invalid number.
    """
    size = _number("WORLD_SIZE", 1, 1 << 20) if os.environ.get("WORLD_SIZE") else 1
    if size == 1:
        return 0, 1
    for name in RANKS:
        if os.environ.get(name):
            return _number(name, 0, size - 1), size
    raise ValueError(
        f"WORLD_SIZE is {size}, but RANK is not set; set it to the number of this process, 0 to {size - 1}"
    )


def is_own() -> bool:
    """Whether `byol train --nproc` started this process, and not the user or another launcher."""
    return MEETING in os.environ


def _number(name: str, least: int, most: int) -> int:
    text = os.environ[name].strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise ValueError(f"environment variable {name} is {text!r:.40}; set a whole number, {least} to {most}")
    return int(text)


def _connect(rank: int, size: int) -> None:
    """Connect the processes of a job. Raises `ValueError` when they cannot."""
    # CPU tensors travel by gloo also where GPUs use NCCL: small agreements need not wait for a GPU.
    backend, place = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", os.environ.get(MEETING)
    address = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")]
    if not place and not all(address):
        raise ValueError(
            f"WORLD_SIZE is {size}, but MASTER_ADDR and MASTER_PORT are not both set; set them to where the processes "
            "meet, or unset WORLD_SIZE"
        )
    try:
        with handled((signal.SIGTERM, signal.SIGINT, HANG_UP), signal.SIG_DFL):  # torch waits without listening
            dist.init_process_group(backend, place or "env://", rank=rank, world_size=size)
    except (dist.DistError, ValueError) as error:
        raise ValueError(f"the processes cannot connect at {':'.join(address)}: {reason_of(error)}") from error


def _local_rank(world: World) -> int:
    """The number of this process on its machine: its launcher's, else counted by the machines' names."""
    if os.environ.get("LOCAL_RANK"):
        return _number("LOCAL_RANK", 0, world.size - 1)
    name = torch.tensor([int.from_bytes(hashlib.sha256(platform.node().encode()).digest()[:7])])
    return int((world.gather(name)[: world.rank] == name).sum())
