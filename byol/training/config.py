"""`TrainConfig`: every setting of a training run, validated when it is built. Standard library only.

Presets are in `byol.training.recipes.presets`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from typing import Any

from byol.encoders import ARCHITECTURES, TIMM
from byol.limits import LARGEST_SIZE
from byol.machine import DEVICES
from byol.run import KNN_K, KNN_TEMPERATURE
from byol.strict_json import check_fields, require_legal
from byol.training.data.view_config import ViewConfig

STEMS = ("auto", "imagenet", "cifar")
OPTIMIZERS = ("lars", "sgd", "adamw")
VIEWS = ("view1", "view2")  # the settings that are views
COMPILE = ("auto", "all", "augmentation", "none")
PRECISIONS = ("auto", "fp32", "bf16")

# What no run needs more of; beyond it arithmetic on sizes overflows, and a slip of the keyboard takes all memory.
LARGEST = {
    **dict.fromkeys(("projector_hidden", "projector_out", "predictor_hidden", "batch_size"), 1 << 20),
    **dict.fromkeys(("image_size", "start_size", "local_size"), LARGEST_SIZE),
    "canvas_size": 1 << 14,
    **dict.fromkeys(("local_views", "cutout_views", "projector_layers"), 64),
    **dict.fromkeys(("epochs", "max_steps", "keep_every", "checkpoint_every", "knn_every", "log_every"), 1 << 40),
    **dict.fromkeys(("knn_k", "knn_bank", "knn_queries"), 1 << 40),
}

LEAST = {
    **dict.fromkeys(("projector_hidden", "projector_out", "epochs", "accumulate"), 1),
    **dict.fromkeys(("knn_k", "knn_bank", "knn_queries", "log_every"), 1),
    **dict.fromkeys(("predictor_hidden", "max_steps", "keep_every", "checkpoint_every", "knn_every"), 0),
    **dict.fromkeys(("start_size", "canvas_size", "local_views", "local_size", "cutout_views"), 0),
    **dict.fromkeys(("weight_decay", "warmup_epochs", "clip_grad"), 0),
    "projector_layers": 2,
    "image_size": 8,
}

# A base rate above this is one meant for LARS: with another optimizer it diverges or collapses within a few steps.
HIGHEST_LR = {"lars": 20.0, "sgd": 1.0, "adamw": 0.02}


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run. Defaults: the paper's 100-epoch recipe for ImageNet at the size of one machine.

    Raises `ValueError` when a value or a combination makes no sense.
    """

    preset: str = "custom"
    """Name of the preset the settings started from."""

    arch: str = "resnet50"
    """Encoder architecture: a ResNet of torchvision's, or timm:NAME for a model of timm's."""
    stem: str = "auto"
    """First layers: imagenet (7x7 stride 2, max-pool), cifar (3x3 stride 1), auto (cifar up to 64 px).

    timm's models keep their own first layers: for them auto and imagenet are the same, and cifar is refused.
    """
    projector_hidden: int = 4096
    """Width of the projector's hidden layer."""
    projector_out: int = 256
    """Width of the projection and of the prediction."""
    projector_layers: int = 2
    """Linear layers of the projector."""
    predictor_hidden: int = 4096
    """Width of the predictor's hidden layer; 0 leaves the predictor out (an ablation: training collapses)."""
    predictor_norm: bool = True
    """Batch-norm in the predictor's hidden layer."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the online encoder, of a timm model that knows it."""

    image_size: int = 224
    """Side of a view in pixels, and of the exported encoder's input."""
    start_size: int = 0
    """Side of the views in the first `start_share` of the steps: a cheap start at low resolution; 0: image_size."""
    start_share: float = 0.5
    """Share of the steps, 0 to 1, with views of start_size."""
    canvas_size: int = 0
    """Side in pixels at which decoded images are held for cropping; 0 takes what the images and image_size need."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means subtracted from values in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel deviations divided by after that."""
    view1: ViewConfig = field(default_factory=ViewConfig)
    """The first view."""
    view2: ViewConfig = field(default_factory=lambda: ViewConfig(blur=0.1, solarize=0.2))
    """The second view."""
    local_views: int = 0
    """Small crops of each image besides the two views, seen by the online network alone; 0: none."""
    local_size: int = 0
    """Side of a small crop in pixels; 0: half of image_size."""
    local_area: tuple[float, float] = (0.05, 0.25)
    """Smallest and largest share of the image's area that a small crop covers."""
    cutout_views: int = 0
    """Partly covered views of each image besides the two, seen by the online network alone; 0: none."""
    cutout_area: tuple[float, float] = (0.2, 0.4)
    """Smallest and largest share of such a view that is covered."""
    own_predictors: bool = True
    """A predictor for each kind of view: the two views, small crops, covered views; else one for all."""

    epochs: int = 100
    """Passes over the images; sets the length of the schedules."""
    max_steps: int = 0
    """Optimizer steps after which schedules and training end, instead of epochs; 0: not used."""
    batch_size: int = 256
    """Images per optimizer step."""
    accumulate: int = 1
    """Micro-batches whose gradients are averaged into one optimizer step; batch_size is split among them."""

    optimizer: str = "lars"
    """Optimizer."""
    lr: float = 0.45
    """Base learning rate per 256 images: the peak rate is lr * batch_size / 256."""
    momentum: float = 0.9
    """Momentum of LARS and SGD."""
    beta2: float = 0.999
    """Decay of AdamW's mean of squared gradients."""
    clip_grad: float = 0.0
    """Largest norm of a step's gradient, to which it is scaled down; 0: no limit."""
    weight_decay: float = 1e-6
    """Weight decay; biases and norm parameters are excluded."""
    lars_eta: float = 1e-3
    """LARS trust coefficient."""
    lars_clip: bool = False
    """Clip the trust ratio so that the rate never exceeds lr (solo-learn's LARS, LARC)."""
    warmup_epochs: float = 10.0
    """Epochs of linear learning-rate warm-up (at most half of the run)."""
    tau: float = 0.99
    """Target network's momentum at the start."""
    tau_cosine: bool = True
    """Raise tau to 1 along a cosine; else keep it constant."""

    init: str = ""
    """Name and digest of the weights the run started from (`--init`); empty: random ones."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "auto"
    """auto, fp32 or bf16."""
    compile: str = "auto"
    """What torch.compile compiles: all (views and networks), augmentation, none, or auto: what pays in a run this long
    (on CUDA all, from a million images; on a CPU augmentation, from 200,000; twice as many with start_size)."""
    sync_norm: str = "auto"
    """Batch-norm statistics over all processes: on, off, or auto (on below 128 images per process and forward)."""
    recompute: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, more time, not compiled."""
    channels_last: bool = True
    """Keep activations in NHWC order."""

    knn_every: int = 1
    """Epochs between kNN measurements on the validation data; 0: none."""
    knn_k: int = KNN_K
    """Neighbours of the in-training kNN."""
    knn_temperature: float = KNN_TEMPERATURE
    """Temperature of the in-training kNN."""
    knn_bank: int = 10_000
    """Most bank images of the in-training kNN."""
    knn_queries: int = 5_000
    """Most validation images of the in-training kNN: on CIFAR-10 bank and queries are 4 % of an epoch's arithmetic."""
    log_every: int = 50
    """Optimizer steps between lines of metrics.jsonl."""
    checkpoint_every: int = 0
    """Optimizer steps between checkpoints; 0: after every epoch, at most once a minute."""
    keep_every: int = 0
    """Epochs between checkpoints kept as step-NNNNNNNN.safetensors, the untrained one included; 0: none."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_choices()
        for name, least in LEAST.items():
            require_legal(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
        for name, most in LARGEST.items():
            require_legal(getattr(self, name) <= most, name, getattr(self, name), f"at most {most:,}")
        for name in ("start_size", "local_size"):
            size = getattr(self, name)
            require_legal(not 0 < size < 8, name, size, "0, or 8 or more")
            require_legal(size <= self.image_size, name, size, f"at most image_size, {self.image_size}")
        for name in ("start_share", "tau"):
            require_legal(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("momentum", "beta2", "drop_path"):
            require_legal(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 to below 1")
        require_legal(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more, batch-norm needs two images")
        micro, rest = divmod(self.batch_size, self.accumulate)
        require_legal(
            rest == 0 and micro >= 2,
            "accumulate",
            self.accumulate,
            f"a divisor of batch_size {self.batch_size} that leaves 2 or more images",
        )
        low, high = self.local_area
        require_legal(0 < low <= high <= 1, "local_area", self.local_area, "two numbers, 0 < smallest <= largest <= 1")
        low, high = self.cutout_area
        require_legal(0 < low <= high < 1, "cutout_area", self.cutout_area, "two numbers, 0 < smallest <= largest < 1")
        require_legal(self.lars_eta > 0, "lars_eta", self.lars_eta, "above 0")
        require_legal(-(2**63) <= self.seed < 2**64, "seed", self.seed, "a number of at most 64 bits")
        require_legal(self.knn_temperature > 0, "knn_temperature", self.knn_temperature, "above 0")
        require_legal(all(value >= 1e-6 for value in self.std), "std", self.std, "1e-6 or more")
        if self.drop_path and not self.timm_name:
            raise ValueError(f"drop_path is for timm's models; {self.arch} has none: leave it out")
        if self.recompute and self.compile == "all":
            raise ValueError("recompute excludes compile=all; use --set compile=augmentation")
        self._check_lr()

    def _check_choices(self) -> None:
        choices = {
            "stem": STEMS,
            "optimizer": OPTIMIZERS,
            "device": DEVICES,
            "precision": PRECISIONS,
            "compile": COMPILE,
            "sync_norm": ("auto", "on", "off"),
        }
        for name, legal in choices.items():
            require_legal(getattr(self, name) in legal, name, getattr(self, name), ", ".join(legal))
        known = self.arch in ARCHITECTURES or bool(self.timm_name)
        require_legal(known, "arch", self.arch, f"{', '.join(ARCHITECTURES)}, {TIMM}NAME, such as {TIMM}resnet10t")
        if self.timm_name and self.stem == "cifar":
            raise ValueError(
                f"stem cifar is for torchvision's ResNets; {self.arch} keeps its own first layers: use --stem auto"
            )

    def _check_lr(self) -> None:
        highest = HIGHEST_LR[self.optimizer]
        if not 0 < self.lr <= highest:
            hint = ""
            if self.optimizer != "lars" and self.lr > highest:
                hint = f"; {self.lr:g} looks like a rate for LARS: add --optimizer lars, or lower --lr"
            raise ValueError(
                f"lr is {self.lr:g}; expected above 0, at most {highest:g} with optimizer {self.optimizer}{hint}"
            )

    @property
    def timm_name(self) -> str:
        """The model's name at timm; empty for an architecture of torchvision's."""
        return self.arch.removeprefix(TIMM) if self.arch.startswith(TIMM) else ""

    @property
    def resolved_stem(self) -> str:
        """The stem with `auto` decided: cifar up to 64 px, imagenet above and for every model of timm's."""
        if self.stem != "auto":
            return self.stem
        if self.timm_name:
            return "imagenet"
        return "cifar" if self.image_size <= 64 else "imagenet"

    @property
    def peak_lr(self) -> float:
        """The learning rate at the end of the warm-up: lr * batch_size / 256 (paper section 3.2)."""
        return self.lr * self.batch_size / 256

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some settings changed, validated anew. Raises `ValueError` for an unknown name."""
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                raise ValueError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: object) -> TrainConfig:
        """The inverse of `to_dict`. Raises `ValueError` for anything that is not a configuration.

        A missing setting is newer than the values and takes its default, which keeps the earlier behaviour.
        """
        if not isinstance(values, dict):
            raise ValueError("the configuration is not an object")
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise ValueError(f"this version does not know the settings {', '.join(unknown[:5])}")
        plain: dict[str, Any] = _tuples(values)
        for view in set(VIEWS) & set(values):
            try:
                plain[view] = ViewConfig(**_tuples(values[view]))
            except (TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"the configuration's {view} does not fit this version: {error}") from error
        return cls(**plain)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where a configuration has tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
