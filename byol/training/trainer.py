"""Networks, optimizer and the optimizer step of a run.

All random numbers are functions of (seed, step), so a run continued from a checkpoint repeats what an uninterrupted
one does. Legend: B batch, S view pixels, M canvas pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from byol.encoders.activations import recompute_blocks
from byol.encoders.build import load_strict
from byol.encoders.strides import step_by_one
from byol.training.begun import Computed
from byol.training.checkpoint import Checkpoint
from byol.training.config import TrainConfig
from byol.training.data.augment import random_numbers
from byol.training.data.batches import Batch, Feed, Order, moved, open_feed, seeded, share
from byol.training.data.intake import ImageTensor, StreamedImages
from byol.training.data.kinds import Kind, kinds_of, size_beside
from byol.training.data.view_config import ViewConfig
from byol.training.data.views import Framing, make_view
from byol.training.device import compiler, for_fixed_shapes, take_device
from byol.training.model import BYOL, Observation, use_channels_last
from byol.training.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
    tau_at,
)
from byol.training.parallel.processes import World
from byol.training.parallel.sync_norm import synchronise_norms
from byol.training.setup import Setup
from byol.training.watch.views_picture import Column, originals, pictures


class GivenUp(Exception):
    """A step was given up between its micro-batches; the networks are as before it."""


class Trainer:
    """Networks, optimizer and images of one run, and its optimizer step.

    With several processes, each sees its part of every batch, and all hold the same weights after every step. A
    resumed run passes `begun`, which decides what the settings leave open. Raises `ValueError`: see `Setup`.
    """

    def __init__(
        self,
        config: TrainConfig,
        images: ImageTensor | StreamedImages,
        world: World | None = None,
        begun: Computed | None = None,
    ):
        self.config, self.world, self.kinds = config, world or World(), kinds_of(config)
        setup = Setup.of(config, len(images), self.world, begun)
        self.plan, self.device, self.precision = setup.plan, setup.device, setup.precision
        self.compiled, self.sync_norm = setup.compiled, setup.sync_norm
        self._open = ExitStack()
        take_device(self.device)
        if begun:
            begun.take_threads(self.device.type, self.world.size)
        torch.manual_seed(config.seed)
        self.model = BYOL(config)
        self.model = self.model.to(self.device).train()
        if config.channels_last:
            use_channels_last(self.model, config.image_size)
        if self.device.type == "cpu" and self.precision == "bf16":
            step_by_one(self.model.online.encoder)
        if config.recompute:
            recompute_blocks(self.model.online.encoder)
        self.parameters = self.model.trained_parameters()
        self.optimizer = build_optimizer(config, self.parameters)
        self.feed = self._open_feed(images)
        mean, std = (torch.tensor(three, device=self.device)[:, None, None] for three in (config.mean, config.std))
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.framing = Framing(mean, std, layout)
        self._make_view: Callable[..., Tensor] = make_view
        if self.compiled != "none":
            self._compile()
        self._network = self._connected()

    def _compile(self) -> None:
        """Compile the views, and the two networks where that is chosen; what surrounds them stays as it is."""
        compiled = compiler(on_trial=self.config.compile == "auto")
        self._make_view = compiled(make_view)
        if self.compiled == "all":
            self.model.compile_networks(compiled)

    @property
    def computed(self) -> Computed:
        """What decides the last bits of this run besides the settings."""
        return Computed.here(self.device, self.precision, self.compiled, self.world.size)

    def _open_feed(self, images: ImageTensor | StreamedImages) -> Feed:
        config, world = self.config, self.world
        blocks = images.source.blocks if isinstance(images, StreamedImages) else None
        order = Order(config.seed, len(images), config.batch_size, blocks)

        def rows(step: int) -> Tensor:
            return share(order.rows(step), config.accumulate, world.rank, world.size)

        return open_feed(images, rows, self.device, self.plan.total)

    def _connected(self) -> nn.Module:
        """The model, as it is or with gradients averaged over the processes."""
        if self.world.size == 1:
            return self.model
        if self.sync_norm:
            synchronise_norms(self.model, self.world.rank, self.world.size, self.world.group)
        devices = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():  # torch 2.15 has another name for it, which 2.14 does not know
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return DistributedDataParallel(
                self.model,
                device_ids=devices,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=len(self.model.predictors) > 0,  # a forward takes one predictor of several
            )

    def step(self, step: int, give_up: Callable[[], bool] = lambda: False) -> tuple[Tensor, Observation]:
        """Optimizer step number `step` (from 0): gradients of all micro-batches, update, then the target follows.

        Returns this process's mean losses (K,) on the device, of the global views and of each further kind, and the
        observation of its part of the batch. Raises `GivenUp`, with nothing changed, when `give_up` says so between two
        micro-batches.
        """
        config, plan = self.config, self.plan
        pixels, aspect = self.feed.batch(step)
        generator = seeded(self.device, config.seed, "views", step)
        torch.manual_seed(self.own_seed(step, generator))
        set_learning_rate(self.optimizer, learning_rate(step, plan.total, plan.warmup, config.peak_lr))
        self.optimizer.zero_grad(set_to_none=True)
        total, observed = torch.zeros(1 + len(self.kinds), device=self.device), []
        before = [buffer.clone() for buffer in self.model.buffers()] if config.accumulate > 1 else []  # batch-norm's
        micro_batches = zip(pixels.chunk(config.accumulate), aspect.chunk(config.accumulate), strict=True)
        for number, micro in enumerate(micro_batches, 1):
            if number > 1 and give_up():
                for buffer, value in zip(self.model.buffers(), before, strict=True):
                    buffer.copy_(value)
                raise GivenUp
            losses, seen = self._gradients(micro, generator, self.view_size(step), number == config.accumulate)
            total += losses / config.accumulate
            observed.append(seen)
        if config.clip_grad:
            nn.utils.clip_grad_norm_(self.parameters.values(), config.clip_grad)
        self.optimizer.step()
        self.model.update_target(self.tau(step))
        return total, Observation(*(torch.cat(parts) for parts in zip(*observed, strict=True)))

    def own_seed(self, step: int, views: torch.Generator) -> int:
        """For the encoder's random numbers (stochastic depth): others in each process, those of one in the first."""
        if self.world.first:
            return views.initial_seed()
        return seeded("cpu", self.config.seed, "encoder", step, self.world.rank).initial_seed()

    def _gradients(self, batch: Batch, generator: torch.Generator, size: int, last: bool) -> tuple[Tensor, Observation]:
        """Add the gradients of a micro-batch, the step's `last` or not, kind of view by kind: one is held at a time.

        Returns the losses (K,) and the observation of the global views.
        """
        losses: list[Tensor] = []
        observed: list[Observation] = []
        targets: tuple[Tensor, ...] = ()
        for kind in (None, *self.kinds):
            views = self.further_views(kind, batch, generator, size) if kind else self.views(batch, generator, size)
            named: dict[str, Any] = {"kind": kind.name, "targets": targets} if kind else {}
            with self._exchange(last and len(losses) == len(self.kinds)):
                with self._autocast():
                    loss, seen = self._network(*views, **named)
                (loss / self.config.accumulate).backward()
            targets = targets or (seen.own_target, seen.target)
            losses.append(loss.detach())
            observed.append(seen)
        return torch.stack(losses), observed[0]

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once a step, in the backward pass of the last micro-batch."""
        if last or not isinstance(self._network, DistributedDataParallel):
            return nullcontext()
        return self._network.no_sync()

    def tau(self, step: int) -> float:
        """The target's momentum at a step."""
        return tau_at(step, self.plan.total, self.config.tau, self.config.tau_cosine)

    def view_size(self, step: int) -> int:
        """S at a step: the side of its views in pixels."""
        early = self.config.start_size and step < self.config.start_share * self.plan.total
        return self.config.start_size if early else self.config.image_size

    def views(
        self, batch: Batch, generator: torch.Generator, size: int, make: Callable[..., Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """Two normalised random views (B, 3, S, S) of a batch; S is `size`. `make` in place of the run's own."""
        configs = (self.config.view1, self.config.view2)
        return tuple(self._view(config, batch, generator, size, make) for config in configs)

    def further_views(
        self,
        kind: Kind,
        batch: Batch,
        generator: torch.Generator,
        size: int,
        make: Callable[..., Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """The normalised views of a kind, beside global ones of `size`."""
        own = size_beside(kind, size, self.config)
        return tuple(self._view(kind.config, batch, generator, own, make) for _ in range(kind.count))

    @torch.no_grad()
    def _view(
        self,
        config: ViewConfig,
        batch: Batch,
        generator: torch.Generator,
        size: int,
        make: Callable[..., Tensor] | None,
    ) -> Tensor:
        pixels, aspect = batch
        numbers = random_numbers(config, len(aspect), generator, self.world.size)
        view = make or self._make_view
        return view(config, pixels, aspect, numbers, size, self.framing, self.world.rank, self.world.size)

    def first_views(self, most: int = 16) -> list[Column]:
        """The first images of the first step as they are, and their views, for people to look at."""
        pixels, aspect = (part[:most] for part in self.feed.batch(0))
        batch = (pixels, aspect)
        generator, size = seeded(self.device, self.config.seed, "views", 0), self.view_size(0)
        named = [(f"view {i}", view) for i, view in enumerate(self.views(batch, generator, size, make_view), 1)]
        for kind in self.kinds:
            further = self.further_views(kind, batch, generator, size, make_view)  # not compiled for it
            named += [(f"{kind.name} {i}", view) for i, view in enumerate(further, 1)]
        shown = [(word, pictures(view * self.framing.std + self.framing.mean)) for word, view in named]
        return [("image", originals(pixels, aspect)), *shown]

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def features(self, pixels: Tensor) -> Tensor:
        """Features (N, D) float32 of uint8 images (N, S, S, 3) by the online encoder in eval mode.

        Every process computes its part and gets all of them.
        """
        world = self.world
        if world.size == 1:
            return self._features(pixels)
        if not self.sync_norm:  # each process has running statistics of its own; the first one's are kept
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        count = -(-len(pixels) // world.size)
        places = torch.arange(world.rank * count, (world.rank + 1) * count).clamp(max=len(pixels) - 1)
        return world.gather(self._features(pixels[places]))[: len(pixels)]

    @torch.no_grad()
    def _features(self, pixels: Tensor, batch: int = 256) -> Tensor:
        encoder: nn.Module = self.model.online.encoder.eval()
        try:
            with self._autocast():
                parts = [
                    encoder(self.framing.normalised(part.permute(0, 3, 1, 2).float() / 255)).float()
                    for part in (moved(part, self.device) for part in torch.split(pixels, batch))
                ]
        finally:
            encoder.train()
        return torch.cat(parts)

    def __enter__(self) -> Trainer:
        self._open.enter_context(for_fixed_shapes(self.device))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self.feed.close()

    def state(self, step: int, data: dict[str, Any]) -> Checkpoint:
        """The checkpoint after `step` finished steps."""
        tensors = dict(self.model.state_dict())
        tensors |= {
            f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer, self.parameters).items()
        }
        return Checkpoint(self.config, step, step // self.plan.steps_per_epoch, data, tensors)

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint. Raises `ValueError` when it does not fit."""
        load_strict(self.model, checkpoint.model(), "the checkpoint")
        load_optimizer_tensors(self.optimizer, self.parameters, checkpoint.optimizer())
