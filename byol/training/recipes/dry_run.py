"""What a run would be, without beginning it: settings, pace, memory and time, measured over a few steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from byol.console import at_work, note, note_several
from byol.images.open import open_source
from byol.images.source import ImageSource
from byol.images.stamps import spread
from byol.text import duration
from byol.training.config import TrainConfig
from byol.training.data.decoded import canvas_side, load_canvases
from byol.training.data.intake import ImageTensor
from byol.training.device import enough_memory
from byol.training.parallel.processes import World
from byol.training.recipes.forecast import Pace, measure, planned
from byol.training.recipes.initial import read_initial
from byol.training.recipes.settings import Job, settings_for, warn_of_splits
from byol.training.setup import Plan, Setup, in_less_memory
from byol.training.watch.knn import KNNMonitor, KNNSets

BATCHES = 4  # decoded for the measurement


@dataclass(frozen=True)
class Forecast:
    """A run as it would be; `seconds` of it: decoding all images for the first time, and training."""

    config: TrainConfig
    images: int
    plan: Plan
    setup: Setup
    pace: Pace
    decoding: float
    training: float

    def rows(self) -> list[tuple[str, object]]:
        """For people."""
        config, step = self.config, self.pace.step(self.config)
        epochs = self.plan.total / self.plan.steps_per_epoch
        total = self.decoding + self.training
        return [
            ("preset", config.preset),
            ("encoder", f"{config.arch} at {config.image_size} px, {self.setup.device.type}, {self.setup.precision}"),
            ("images", f"{self.images:,}"),
            ("steps", f"{self.plan.total:,} of {config.batch_size} images ({epochs:.1f} epochs)"),
            ("speed", f"{config.batch_size / step:.0f} images/s, {step:.2g} s a step"),
            ("memory", f"{self.pace.memory_gb:.1f} GB"),
            ("kNN", f"every {config.knn_every} epochs, {self.pace.knn:.1f} s" if self.pace.knn else "none"),
            ("decoding", f"{duration(self.decoding)} (less when the images are in the cache)"),
            ("time", duration(total)),
            ("ends", time.strftime("%A %H:%M", time.localtime(time.time() + total)) + ", if it begins now"),
        ]

    def values(self) -> dict[str, object]:
        """For programs: seconds, images per second and GB, and all settings."""
        return {
            "images": self.images,
            "steps": self.plan.total,
            "images_per_second": round(self.config.batch_size / self.pace.step(self.config), 1),
            "memory_gb": round(self.pace.memory_gb, 2),
            "knn_seconds": round(self.pace.knn, 2),
            "decoding_seconds": round(self.decoding, 1),
            "training_seconds": round(self.training, 1),
            "config": self.config.to_dict(),
        }


def dry_run(
    config: TrainConfig | None, job: Job, change: Callable[[TrainConfig], TrainConfig] = lambda config: config
) -> Forecast:
    """Choose as a new run would, take some steps and throw them away. Writes nothing. Raises as training does."""
    source = open_source(job.images)
    warn_of_splits(source)
    initial = read_initial(job.init) if job.init else None
    config = settings_for(job, source, config, change, initial)
    Setup.of(config, len(source), World())
    side = config.canvas_size or canvas_side(source, config.image_size)
    config = config.replace(canvas_size=side)
    with enough_memory(partial(in_less_memory, config, 1)):
        return _measured(config, job, source, side)


def _measured(config: TrainConfig, job: Job, source: ImageSource, side: int) -> Forecast:
    some, decoding = _decoded(source, config, side)
    note_several(some.several, len(some))
    knn, world = _monitor(config, job, source), World()
    note("timing a few steps")
    with at_work(lambda: "measuring"):
        if job.seconds:
            left = job.seconds - decoding
            config, pace = planned(config, some, world, knn, lambda: left, len(source), job.named)
        else:
            pace = measure(config, some, world, knn, len(source))
    plan = Plan.of(config, len(source))
    return Forecast(
        config, len(source), plan, Setup.of(config, len(source), world), pace, decoding, pace.run(config, plan)
    )


def _decoded(source: ImageSource, config: TrainConfig, side: int) -> tuple[ImageTensor, float]:
    """Some of the images, and the seconds that decoding all of them takes at this rate."""
    chosen = replace(source.subset(spread(len(source), BATCHES * config.batch_size)), stamp=None)
    began = time.perf_counter()
    images = load_canvases(chosen, side)
    return images, (time.perf_counter() - began) * len(source) / len(chosen)


def _monitor(config: TrainConfig, job: Job, source: ImageSource) -> KNNMonitor | None:
    if job.val_data is None or not config.knn_every:
        return None
    sources = (replace(one, stamp=None) for one in (source, open_source(job.val_data)))  # so that none is kept
    return KNNMonitor(config, KNNSets.choose(config, *sources))
