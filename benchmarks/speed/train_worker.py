"""One row of `benchmarks/train.py` or `growth.py`: train for a while and print a figure as JSON on the last line.

python -m benchmarks.speed.train_worker ROW DATA NAME=VALUE ...; ROW is one of WORKERS.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from byol.encoders import activations
from byol.encoders.build import build_encoder, feature_dim
from byol.images.open import open_source
from byol.machine import keep_freed_memory
from byol.training.config import TrainConfig
from byol.training.data.decoded import canvas_side, open_images
from byol.training.data.intake import ImageTensor, StreamedImages
from byol.training.recipes.presets import PRESETS
from byol.training.trainer import Trainer
from byol.training.watch.collapse import collapse_statistics
from byol.training.watch.knn import KNNMonitor, KNNSets


def timed(step: Callable[[int], object], seconds: float, device: torch.device, images: int) -> float:
    """Images/s of repeated steps, after a warm-up of the same length."""

    def run(first: int) -> tuple[int, float]:
        wait(device)
        started, number = time.perf_counter(), first
        while time.perf_counter() - started < seconds or number < first + 3:
            step(number)
            number += 1
            if device.type == "cuda" and number % 10 == 0:
                wait(device)
        wait(device)
        return number, time.perf_counter() - started

    warm, _ = run(0)
    last, spent = run(warm)
    return (last - warm) * images / spent


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def config_for(options: dict[str, Any]) -> TrainConfig:
    """The `cifar10-lightly` recipe at the size asked for: the peer's own."""
    names = {"arch", "image_size", "batch_size", "device", "precision", "channels_last", "compile"}
    given = {name: value for name, value in options.items() if name in names}
    return PRESETS["cifar10-lightly"]().replace(stem="auto", epochs=1000, lr=0.12, **given)


def our_trainer(config: TrainConfig, data: Path, streamed: bool = False) -> Trainer:
    source = open_source(data)
    config = config.replace(canvas_size=canvas_side(source, config.image_size))
    side = config.canvas_size
    return Trainer(config, StreamedImages(source, side) if streamed else open_images(source, side))


def ours(config: TrainConfig, data: Path, seconds: float, streamed: bool = False) -> float:
    """What `byol train` does per step: feed, views, step, and the monitor's reading every `log_every` steps."""
    trainer = our_trainer(config, data, streamed)

    def step(number: int) -> None:
        losses, seen = trainer.step(number)
        if number % config.log_every == 0:
            losses.tolist()
            collapse_statistics(seen)

    return timed(step, seconds, trainer.device, config.batch_size)


def streamed(config: TrainConfig, data: Path, seconds: float) -> float:
    """Ours on images that fit neither memory nor cache: every file is decoded again for every epoch."""
    return ours(config, data, seconds, streamed=True)


def knn(config: TrainConfig, data: Path, seconds: float) -> float:
    """What one kNN measurement while training costs, in percent of an epoch's steps; its queries are DATA/../test."""
    rate = ours(config, data, seconds)
    trainer = our_trainer(config, data)
    source = open_source(data)
    sets = KNNSets.choose(trainer.config, source, open_source(data.parent / "test"))
    monitor = KNNMonitor(trainer.config, sets)
    monitor.measure(trainer.features)
    started = time.perf_counter()
    monitor.measure(trainer.features)
    return 100 * (time.perf_counter() - started) / (len(source) / rate)


def ceiling(config: TrainConfig, data: Path, seconds: float) -> float:
    """Our step without its input: the same two random views every time."""
    side = config.image_size
    pixels = torch.randint(0, 256, (config.batch_size, side, side, 3), dtype=torch.uint8)
    images = ImageTensor(pixels, torch.ones(len(pixels)), torch.arange(len(pixels)).numpy(), [])
    trainer = without_input(Trainer(config.replace(canvas_size=side), images))
    return timed(trainer.step, seconds, trainer.device, config.batch_size)


def without_input(trainer: Trainer) -> Trainer:
    """The trainer with the views of its first batch in every step."""
    generator = torch.Generator(trainer.device).manual_seed(0)
    views = trainer.views(trainer.feed.batch(0), generator, trainer.config.image_size)
    trainer.views = lambda *_: views  # type: ignore[method-assign]
    return trainer


def matrix(config: TrainConfig, data: Path, seconds: float) -> float:
    """Images/s if a step multiplied as fast as one large bf16 matrix product does; ours / this is the share of it."""
    trainer = our_trainer(config.replace(compile="none"), data)
    return matrix_rate(trainer.device, seconds) / flops_per_image(trainer)


def flops_per_image(trainer: Trainer) -> float:
    """Floating-point operations of a step's multiplications, for each image. Nothing may be compiled."""
    with FlopCounterMode(display=False) as counter:
        trainer.step(0)
    return float(counter.get_total_flops() / trainer.config.batch_size)


def matrix_rate(device: torch.device, seconds: float, side: int = 0) -> float:
    """Floating-point operations a second of one large bf16 matrix product."""
    side = side or (8192 if device.type == "cuda" else 2048)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return timed(lambda _: left @ right, seconds, device, 1) * 2 * side**3


def loops(config: TrainConfig, data: Path, seconds: float) -> float:
    """Ours with one update at a time: optimizer without foreach, target parameter by parameter."""
    trainer = our_trainer(config, data)
    for group in trainer.optimizer.param_groups:
        group["foreach"] = False

    @torch.no_grad()
    def update(tau: float) -> None:
        for target, online in zip(trainer.model.target.parameters(), trainer.model.online.parameters(), strict=True):
            target.lerp_(online, 1 - tau)

    trainer.model.update_target = update  # type: ignore[method-assign]
    return timed(trainer.step, seconds, trainer.device, config.batch_size)


def dataloader(config: TrainConfig, data: Path, seconds: float) -> float:
    """Our networks and step, fed by the peer's per-image transforms in a DataLoader."""
    trainer = our_trainer(config, data)
    batches = lightly_batches(data, config)

    def views(*_: object) -> tuple[Tensor, Tensor]:
        view1, view2 = next(batches)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        return tuple(v.to(trainer.device, memory_format=layout) for v in (view1, view2))  # type: ignore[return-value]

    trainer.views = views  # type: ignore[method-assign,assignment]
    return timed(trainer.step, seconds, trainer.device, config.batch_size)


def lightly_batches(data: Path, config: TrainConfig) -> Iterator[list[Tensor]]:
    """Pairs of views as lightly's example makes them: per image, in worker processes."""
    from lightly.data import LightlyDataset
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from torch.utils.data import DataLoader

    blur = 0.0 if config.image_size <= 64 else 1.0
    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=config.image_size, gaussian_blur=blur),
        view_2_transform=BYOLView2Transform(input_size=config.image_size, gaussian_blur=blur / 10),
    )
    loader = DataLoader(
        LightlyDataset(str(data), transform=transform),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=len(os.sched_getaffinity(0)),
    )
    return (views for _ in itertools.count() for views, _, _ in loader)


def lightly(config: TrainConfig, data: Path, seconds: float) -> float:
    """lightly's documented BYOL loop (see `lightly_loop`)."""
    _, step = lightly_loop(config, data, lambda: 0.99)
    return timed(step, seconds, torch.device(config.device), config.batch_size)


def lightly_loop(
    config: TrainConfig, data: Path, momentum: Callable[[], float]
) -> tuple[torch.nn.Module, Callable[[int], None]]:
    """The encoder and the step of lightly's documented BYOL loop.

    Its heads, loss, momentum update and transforms, fp32, plain SGD at a constant rate. `momentum` is asked each step.
    """
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    device = torch.device(config.device)
    backbone = build_encoder(config.arch, config.resolved_stem).to(device)
    width = feature_dim(backbone)
    projector = BYOLProjectionHead(width, 1024, 256).to(device)
    predictor = BYOLPredictionHead(256, 1024, 256).to(device)
    target_backbone, target_projector = copy.deepcopy(backbone), copy.deepcopy(projector)
    deactivate_requires_grad(target_backbone)
    deactivate_requires_grad(target_projector)
    parameters = itertools.chain(backbone.parameters(), projector.parameters(), predictor.parameters())
    optimizer, criterion = torch.optim.SGD(parameters, lr=0.06), NegativeCosineSimilarity()
    batches = lightly_batches(data, config)

    def step(number: int) -> None:
        update_momentum(backbone, target_backbone, m=momentum())
        update_momentum(projector, target_projector, m=momentum())
        view1, view2 = (view.to(device) for view in next(batches))
        prediction1, prediction2 = (predictor(projector(backbone(view))) for view in (view1, view2))
        target1, target2 = (target_projector(target_backbone(view)).detach() for view in (view1, view2))
        loss = 0.5 * (criterion(prediction1, target2) + criterion(prediction2, target1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return backbone, step


def byol_pytorch(config: TrainConfig, data: Path, seconds: float) -> float:
    """byol-pytorch's documented loop, fp32, Adam. It augments whole batches, one crop and jitter for all images."""
    from byol_pytorch import BYOL
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    device, side = torch.device(config.device), config.image_size
    encoder = build_encoder(config.arch, config.resolved_stem).to(device)
    learner = BYOL(encoder, image_size=side, hidden_layer="avgpool").to(device)
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-4)
    whole = transforms.Compose([transforms.Resize((side, side)), transforms.ToTensor()])
    workers = len(os.sched_getaffinity(0))
    loader = DataLoader(ImageFolder(str(data), whole), config.batch_size, True, num_workers=workers, drop_last=True)
    batches = (images for _ in itertools.count() for images, _ in loader)

    def step(number: int) -> None:
        loss = learner(next(batches).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()

    return timed(step, seconds, device, config.batch_size)


WORKERS = {
    "ours": ours,
    "lightly": lightly,
    "byol-pytorch": byol_pytorch,
    "ceiling": ceiling,
    "matrix": matrix,
    "streamed": streamed,
    "dataloader": dataloader,
    "loops": loops,
    "knn": knn,
}


def main() -> None:
    kind, data, *settings = sys.argv[1:]
    options = dict(setting.split("=", 1) for setting in settings)
    parsed: dict[str, Any] = {}
    for name, text in options.items():
        try:
            parsed[name] = json.loads(text)
        except json.JSONDecodeError:
            parsed[name] = text
    seconds = float(parsed.pop("seconds"))
    if parsed.pop("keep_memory", kind not in ("lightly", "byol-pytorch")):  # as the `byol` command does
        keep_freed_memory()
    activations.SMALL_MAP = int(parsed.pop("small_map", activations.SMALL_MAP))
    print(json.dumps({"figure": WORKERS[kind](config_for(parsed), Path(data), seconds)}))


if __name__ == "__main__":
    main()
