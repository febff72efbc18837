"""Fine-tuning: an encoder and a linear layer trained together on labelled images (paper section 4, appendix C).

The paper's protocol: random crop and flip only, cross-entropy, SGD with Nesterov momentum 0.9, no weight decay, a
cosine to 0 without warm-up. All random numbers are functions of the seed and the step.
Legend: N images, B batch, M canvas pixels, S view pixels, D feature, C classes.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from byol.encoders.activations import encoder_channels_last
from byol.encoders.build import feature_dim
from byol.encoders.strides import step_by_one
from byol.machine import DEVICES
from byol.strict_json import check_fields, require_legal
from byol.training.config import PRECISIONS
from byol.training.data.augment import draw, render
from byol.training.data.batches import Batch, Order, open_feed, seeded
from byol.training.data.intake import ImageTensor
from byol.training.data.view_config import ViewConfig
from byol.training.optim import learning_rate, set_learning_rate

MOMENTUM = 0.9
MOST = 1 << 20  # of anything that is counted
SCORED = 256  # images at a time


@dataclass(frozen=True)
class FinetuneConfig:
    """Every setting of a fine-tuning. Raises `ValueError` for illegal values."""

    labels: int | float = 1.0
    """Labelled images of each class: an int is their number, a float their share."""
    draws: int = 1
    """How often they are drawn; draw i is the same as in `byol linear`."""
    lr: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    """Learning rates to try, each the peak rate itself (the paper's sweep)."""
    epochs: tuple[int, ...] = (30, 50)
    """Passes over the labelled images to try (the paper's sweep)."""
    batch_size: int = 64
    """Images per optimizer step, at most all of them."""
    crop_area: float = 0.08
    """Smallest share of an image's area that a training crop covers."""
    flip: bool = True
    """Whether training images are flipped left to right at random."""
    from_scratch: bool = False
    """Start from random weights instead of the encoder's: the baseline."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "auto"
    """Of training: auto, fp32 or bf16. Accuracies are always measured in fp32."""

    def __post_init__(self) -> None:
        check_fields(self)
        share = isinstance(self.labels, float)
        enough = 0 < self.labels <= (1 if share else MOST)
        require_legal(enough, "labels", self.labels, "a number of images, or a share above 0, up to 1")
        drawn = 1 <= self.draws <= MOST and (self.draws == 1 or not share or self.labels < 1)
        require_legal(drawn, "draws", self.draws, "1 or more of some labels, 1 where all of them are used")
        rates = bool(self.lr) and all(rate > 0 for rate in self.lr)
        require_legal(rates, "lr", self.lr, "one or more numbers above 0")
        counts = bool(self.epochs) and all(1 <= count <= MOST for count in self.epochs)
        require_legal(counts, "epochs", self.epochs, f"one or more whole numbers, 1 to {MOST:,}")
        several = 2 <= self.batch_size <= MOST
        require_legal(several, "batch_size", self.batch_size, f"2 to {MOST:,}; batch-norm needs two images")
        require_legal(0 < self.crop_area <= 1, "crop_area", self.crop_area, "above 0, up to 1")
        for name, legal in {"device": DEVICES, "precision": PRECISIONS}.items():
            require_legal(getattr(self, name) in legal, name, getattr(self, name), ", ".join(legal))

    @property
    def view(self) -> ViewConfig:
        """The training images: crop and flip, nothing else."""
        flip = 0.5 if self.flip else 0.0
        return ViewConfig((self.crop_area, 1.0), flip=flip, jitter=0.0, grey=0.0, blur=0.0, solarize=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


@dataclass(frozen=True)
class Trial:
    """The two settings that are swept."""

    lr: float
    epochs: int


@dataclass(frozen=True)
class Scores:
    """Accuracies (0 to 1) on labelled images."""

    top1: float
    top5: float
    mean_per_class: float


class Classifier(nn.Module):
    """An encoder with a linear layer behind it: normalised images (B, 3, S, S) to logits (B, C)."""

    def __init__(self, encoder: nn.Module, classes: int):
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(feature_dim(encoder), classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, C)."""
        logits: Tensor = self.classifier(self.encoder(images))
        return logits


@dataclass(frozen=True)
class LabelledImages:
    """Images in two forms: `canvases` for random crops, `preprocessed` as in serving; `classes` int64 (N,)."""

    canvases: ImageTensor
    preprocessed: ImageTensor
    classes: Tensor


class Tuner:
    """Fits and scores classifiers for images of side `image_size`, normalised by `mean` and `std`."""

    def __init__(
        self,
        config: FinetuneConfig,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        precision: str,
    ):
        self.config, self.image_size, self.device, self.precision = config, image_size, device, precision
        self.mean = torch.tensor(mean, device=device)[:, None, None]  # (3, 1, 1)
        self.std = torch.tensor(std, device=device)[:, None, None]

    def fit(self, model: Classifier, images: LabelledImages, rows: np.ndarray, trial: Trial, seed: int) -> float:
        """Train a model in place on some rows of the images; the mean loss of the last epoch."""
        batch = min(self.config.batch_size, len(rows))
        order, places = Order(seed, len(rows), batch), torch.from_numpy(rows)
        epoch = len(rows) // batch
        total = trial.epochs * epoch
        model.to(self.device).train()
        encoder_channels_last(model.encoder, self.image_size)
        if self.device.type == "cpu" and self.precision == "bf16":
            step_by_one(model.encoder)
        optimizer = SGD(model.parameters(), trial.lr, momentum=MOMENTUM, nesterov=True)
        classes = images.classes.to(self.device)
        torch.manual_seed(seed)  # for the encoder's own random numbers
        loss = torch.zeros((), device=self.device)
        with closing(open_feed(images.canvases, lambda step: places[order.rows(step)], self.device, total)) as feed:
            for step in range(total):
                set_learning_rate(optimizer, learning_rate(step, total, 0, trial.lr))
                view = self.view(feed.batch(step), seeded(self.device, seed, "crops", step))
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    logits = model(view)
                step_loss = F.cross_entropy(logits.float(), classes[places[order.rows(step)].to(self.device)])
                optimizer.zero_grad(set_to_none=True)
                step_loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if step >= total - epoch:
                    loss += step_loss.detach() / epoch
        return float(loss)

    @torch.no_grad()
    def view(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Random crops of a batch, normalised (B, 3, S, S)."""
        pixels, aspect = batch
        params = draw(self.config.view, aspect, generator)
        return self._normalise(render(self.config.view, pixels.permute(0, 3, 1, 2), params, self.image_size))

    def _normalise(self, view: Tensor) -> Tensor:
        return ((view - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def score(self, model: Classifier, pixels: Tensor, classes: Tensor) -> Scores:
        """Scores on preprocessed images uint8 (N, S, S, 3) of classes (N,), in fp32 as the bundle computes."""
        model.eval()
        parts = (part.to(self.device).permute(0, 3, 1, 2).float() / 255 for part in torch.split(pixels, SCORED))
        return scores(torch.cat([model(self._normalise(part)).cpu() for part in parts]), classes)


def scores(logits: Tensor, classes: Tensor) -> Scores:
    """Accuracies of logits (N, C) for the true classes (N,) int64; all 0 where training diverged."""
    if not logits.isfinite().all():
        return Scores(0.0, 0.0, 0.0)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    hits = best == classes[:, None]
    right = hits[:, 0].double()
    per_class = [right[classes == number].mean() for number in torch.unique(classes)]
    return Scores(
        top1=float(right.mean()),
        top5=float(hits.any(dim=1).double().mean()),
        mean_per_class=float(torch.stack(per_class).mean()),
    )
