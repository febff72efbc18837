"""What a configuration means for a number of images on this machine: steps, device, precision, compilation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from byol.training.begun import Computed
from byol.training.config import TrainConfig
from byol.training.device import resolve_compile, resolve_device, resolve_precision, resolve_sync_norm
from byol.training.parallel.processes import World


@dataclass(frozen=True)
class Plan:
    """How long a run is, in optimizer steps."""

    steps_per_epoch: int
    total: int
    warmup: int

    @classmethod
    def of(cls, config: TrainConfig, images: int) -> Plan:
        """The plan for so many images. Raises `ValueError` when they do not fill one batch."""
        if images < 2:
            raise ValueError(f"{images} readable image is too few; batch-norm needs two or more")
        if images < config.batch_size:
            raise ValueError(
                f"batch_size {config.batch_size} is more than the {images} images; use --batch-size {images} or fewer"
            )
        per_epoch = images // config.batch_size
        total = config.max_steps or config.epochs * per_epoch
        return cls(per_epoch, total, min(round(config.warmup_epochs * per_epoch), total // 2))


def micro_batch(config: TrainConfig, processes: int) -> int:
    """Images per process and forward. Raises `ValueError` when the batch cannot be divided."""
    parts = config.accumulate * processes
    if config.batch_size % parts or config.batch_size < 2 * parts:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be split into {config.accumulate} micro-batches for "
            f"{processes} processes of 2 or more images; use a multiple of {parts}, at least {2 * parts}"
        )
    return config.batch_size // parts


def in_less_memory(config: TrainConfig, processes: int) -> str:
    """What a process computes at a time, and the options by which that takes less memory."""
    images = config.batch_size // (config.accumulate * processes)
    ways = [f"--accumulate {2 * config.accumulate}"] if images % 2 == 0 and images >= 4 else []
    ways += [] if config.recompute else ["--recompute"]
    ways += ["a smaller --batch-size"]
    return f"{images} images of {config.image_size} px at a time; use {' or '.join(ways)}"


def _sizes(config: TrainConfig) -> int:
    """How many sizes views have, one after the other: for each, all is compiled anew."""
    return 1 + (0 < config.start_share < 1 and config.start_size not in (0, config.image_size))


@dataclass(frozen=True)
class Setup:
    """What a configuration means here for a number of images, known before any is decoded."""

    plan: Plan
    device: torch.device
    precision: str
    compiled: str
    sync_norm: bool

    @classmethod
    def of(cls, config: TrainConfig, images: int, world: World, begun: Computed | None = None) -> Setup:
        """For a resumed run, decided as when it had `begun`.

        Raises `ValueError` when it cannot work: too few images, a missing device, ...
        """
        plan = Plan.of(config, images)
        device = resolve_device(config.device, world.local_rank)
        decided = begun.settings(config, device.type) if begun else config
        compiled = resolve_compile(decided.compile, device, plan.total * config.batch_size // _sizes(config))
        if compiled == "all" and config.recompute:  # which breaks the networks' graph
            compiled = "augmentation"
        sync_norm = resolve_sync_norm(config.sync_norm, micro_batch(config, world.size), world.size)
        return cls(plan, device, resolve_precision(decided.precision, device), compiled, sync_norm)
