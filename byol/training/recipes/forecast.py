"""How long a run takes on this machine, measured over some steps, and the run that fits into a given time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from byol.strict_json import read_object
from byol.text import duration
from byol.training.config import TrainConfig
from byol.training.data.intake import ImageTensor, StreamedImages
from byol.training.device import peak_memory
from byol.training.parallel.processes import World
from byol.training.setup import Plan, Setup
from byol.training.trainer import Trainer
from byol.training.watch.knn import KNNMonitor

WARM_UP, LEAST, MOST = 2, 4, 40  # steps before the clock starts, and those measured
ENOUGH, TOO_LONG = 8.0, 30.0  # seconds of measured steps, and after which any number is enough
# A processor can be a tenth faster for its first half minute, and a busy host slower for some seconds: a plan for a
# time rests on a longer look, of which the second half counts.
LOOK_SHARE, LONGEST_LOOK = 0.02, 60.0  # of the time, and in seconds
KNN_SHARE = 0.05  # of the time: the most that kNN takes in a run planned to end in time
RESERVE = 0.01  # of the time, for the end
WARM_UP_SHARE = 0.1  # of such a run: the longest warm-up of the rate
LEAST_PLANNED = 20  # steps that are worth being called a run


@dataclass(frozen=True)
class Pace:
    """Seconds that a run's parts take here.

    `early`, `late`: an optimizer step with views of start_size, and of image_size; `knn`: one measurement of accuracy;
    `warm_up`: the first steps beyond what steps take, such as for compiling; `memory_gb`: the peak while measuring;
    `compiled`: what was compiled.
    """

    early: float
    late: float
    knn: float
    warm_up: float
    memory_gb: float
    compiled: str

    def step(self, config: TrainConfig) -> float:
        """Seconds per optimizer step, averaged over the run."""
        share = config.start_share if config.start_size else 0.0
        return share * self.early + (1 - share) * self.late

    def run(self, config: TrainConfig, plan: Plan) -> float:
        """Seconds of a whole run from its first step, kNN included."""
        epochs = plan.total / plan.steps_per_epoch
        times = 0 if not self.knn or not config.knn_every else 2 + int(epochs / config.knn_every)
        return self.warm_up + plan.total * self.step(config) + times * self.knn


def measure(
    config: TrainConfig,
    images: ImageTensor | StreamedImages,
    world: World,
    knn: KNNMonitor | None = None,
    count: int | None = None,
    enough: float = ENOUGH,
) -> Pace:
    """Take some steps of a run with networks of their own, which are thrown away.

    `count`: how many images the run has, where `images` are some of them; `enough`: seconds of steps. On several
    processes all take part. Raises as `Trainer`.
    """
    setup = Setup.of(config, count or len(images), world)
    # Long enough to have an early and a late part, without what only a longer run would compile.
    compile = "none" if setup.compiled == "none" else config.compile
    config = config.replace(max_steps=max(setup.plan.total, 1000), compile=compile)
    if isinstance(images, StreamedImages):
        images = StreamedImages(images.source, images.canvas)  # the trainer closes its threads
    trainer = Trainer(config, images, world)
    with trainer:
        began = time.perf_counter()
        late, steps = _timed(trainer, trainer.plan.total - _most(enough) - WARM_UP, enough)
        early, more = _timed(trainer, 0, enough) if config.start_size else (late, 0)
        beyond = time.perf_counter() - began - steps * late - more * early
        accuracy = _knn_seconds(knn, trainer) if knn else 0.0
        memory = peak_memory(trainer.device) / 1e9
    del trainer  # its networks, before the run's own are made
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Pace(early, late, accuracy, max(0.0, beyond), memory, setup.compiled)


def _most(enough: float) -> int:
    return math.ceil(MOST * enough / ENOUGH)


def _timed(trainer: Trainer, first: int, enough: float) -> tuple[float, int]:
    """Seconds per step from step `first`, in the second half of so many seconds, and the number of steps taken.

    Where steps are slow, few are.
    """
    taken, began = 0, time.perf_counter()

    def since(start: float, most: float) -> bool:
        return trainer.world.any(time.perf_counter() - start >= most)  # all processes take as many

    def step() -> None:
        nonlocal taken
        losses, _ = trainer.step(first + taken)
        losses.tolist()  # the clock waits for the device
        taken += 1

    step()
    while taken < WARM_UP and not since(began, ENOUGH):
        step()
    ends = [time.perf_counter()]
    while len(ends) <= _most(enough):
        step()
        ends.append(time.perf_counter())
        if (len(ends) > LEAST and since(ends[0], enough)) or since(ends[0], max(TOO_LONG, enough)):
            break
    half = (len(ends) - 1) // 2
    return (ends[-1] - ends[half]) / (len(ends) - 1 - half), taken


def _knn_seconds(knn: KNNMonitor, trainer: Trainer) -> float:
    began = time.perf_counter()
    knn.measure(trainer.features)
    return time.perf_counter() - began


def fitted(
    config: TrainConfig, pace: Pace, images: int, seconds: float, named: Collection[str] = frozenset()
) -> TrainConfig:
    """The settings with as many steps as fit into `seconds`, measurements of kNN included, and a schedule for them.

    kNN is measured less often than set where it would take more than a twentieth of the time, and the warm-up is at
    most a tenth of the run, unless they are `named`: then they stay, as long as they leave time for a run. Raises
    `ValueError` when there is no time for one.
    """
    step = pace.step(config)
    per_epoch = Plan.of(config.replace(max_steps=1), images).steps_per_epoch
    seldom = config.knn_every and max(config.knn_every, math.ceil(pace.knn / (KNN_SHARE * per_epoch * step)))
    warmup = config.warmup_epochs
    for knn_every in (config.knn_every, seldom) if "knn_every" in named else (seldom,):
        each = step + (pace.knn / (knn_every * per_epoch) if knn_every else 0.0)
        total = int((seconds * (1 - RESERVE) - pace.warm_up - 2 * pace.knn) / each)  # kNN also before and after
        if total >= LEAST_PLANNED:
            most = math.inf if "warmup_epochs" in named else WARM_UP_SHARE * total / per_epoch
            return config.replace(max_steps=total, knn_every=knn_every, warmup_epochs=min(warmup, most))
    least = duration(1.1 * (pace.warm_up + 2 * pace.knn + LEAST_PLANNED * each) + 60)
    raise ValueError(
        f"--time leaves {duration(max(0.0, seconds))} for training, of which a step takes {step:.2g} s: too short "
        f"for {LEAST_PLANNED} steps; give {least} or more, smaller views (--image-size) or a smaller --batch-size"
    )


def planned(
    config: TrainConfig,
    images: ImageTensor | StreamedImages,
    world: World,
    knn: KNNMonitor | None,
    seconds_left: Callable[[], float],
    count: int | None = None,
    named: Collection[str] = frozenset(),
) -> tuple[TrainConfig, Pace]:
    """The settings of a run that ends in time, the same in all processes, and the pace on which they rest.

    A second look at the pace is for long runs, and for what is compiled, as that can depend on the length. `count`: as
    in `measure`; `named`: as in `fitted`.
    """
    count = count or len(images)
    pace = measure(config.replace(max_steps=1), images, world, knn, count)
    found = fitted(config, pace, count, seconds_left(), named)
    enough = float(world.tell(str(min(LONGEST_LOOK, max(ENOUGH, LOOK_SHARE * seconds_left())))))
    if world.any(enough > ENOUGH or Setup.of(found, count, world).compiled != pace.compiled):
        pace = measure(found, images, world, knn, count, enough)
        found = fitted(config, pace, count, seconds_left(), named)
    return TrainConfig.from_dict(read_object(world.tell(json.dumps(found.to_dict())))), pace
