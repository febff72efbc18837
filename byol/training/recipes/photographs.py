"""Presets for photographs, by device and number of images. ImageNet's mean and deviation; no CIFAR crops.

On a CPU, our own: timm's ResNet-10 with its stem of three 3x3 convolutions at 64 px, heads as in `cifar10-cpu`, and a
target network that follows quickly, as such runs take only some thousand steps. Measured on 4,710 photographs
(docs/first-run.md, benchmarks/README.md), not on a thousand nor on a hundred thousand.
On a GPU: lightly's Imagenette settings (ResNet-18 at 128 px), for many images the paper's with ResNet-50 at 160 px.
"""

from __future__ import annotations

from dataclasses import replace

from byol.training.config import TrainConfig
from byol.training.data.view_config import ViewConfig


def photos_cpu_1k() -> TrainConfig:
    """A thousand photographs on a CPU: ResNet-10 at 64 px, 200 epochs."""
    return photos_cpu_10k().replace(preset="photos-cpu-1k", epochs=200)


def photos_cpu_10k() -> TrainConfig:
    """Ten thousand photographs on a CPU: ResNet-10 at 64 px, 40 epochs."""
    view = ViewConfig(crop_area=(0.2, 1.0), blur=0.5, additive_brightness=False)
    return TrainConfig(
        preset="photos-cpu-10k",
        arch="timm:resnet10t",
        projector_hidden=1024,
        predictor_hidden=1024,
        image_size=64,
        view1=view,
        view2=replace(view, blur=0.1, solarize=0.2),
        batch_size=64,
        epochs=40,
        optimizer="sgd",
        lr=0.48,
        weight_decay=5e-4,
        warmup_epochs=1.0,
        tau=0.85,
    )


def photos_cpu_100k() -> TrainConfig:
    """A hundred thousand photographs on a CPU: ResNet-10 at 64 px, 10 epochs."""
    return photos_cpu_10k().replace(preset="photos-cpu-100k", epochs=10, warmup_epochs=0.5)


def photos_gpu_1k() -> TrainConfig:
    """A thousand photographs on one GPU: ResNet-18 at 128 px, 800 epochs. Not measured."""
    return photos_gpu_10k().replace(preset="photos-gpu-1k", batch_size=128, epochs=800)


def photos_gpu_10k() -> TrainConfig:
    """Ten thousand photographs on one GPU: ResNet-18 at 128 px, 400 epochs. Not measured.

    lightly's Imagenette benchmark reaches kNN 88.7 % in 800 epochs with these heads, rates and views.
    """
    view = ViewConfig(blur=0.5, additive_brightness=False)
    return TrainConfig(
        preset="photos-gpu-10k",
        arch="resnet18",
        projector_hidden=1024,
        predictor_hidden=1024,
        image_size=128,
        view1=view,
        view2=replace(view, blur=0.1, solarize=0.2),
        batch_size=256,
        epochs=400,
        optimizer="sgd",
        lr=0.12,
        weight_decay=5e-4,
        warmup_epochs=2.0,
        tau=0.99,
    )


def photos_gpu_100k() -> TrainConfig:
    """A hundred thousand photographs on one GPU: ResNet-50 at 160 px, 100 epochs. Not measured."""
    return TrainConfig(preset="photos-gpu-100k", arch="resnet50", image_size=160, batch_size=512, accumulate=2)
