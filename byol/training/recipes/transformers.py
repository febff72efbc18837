"""Presets for vision transformers: AdamW and three kinds of view, after De Plaen et al. 2026 (arXiv 2602.05845)."""

from __future__ import annotations

from dataclasses import replace

from byol.training.config import TrainConfig
from byol.training.data.view_config import ViewConfig


def vit_small() -> TrainConfig:
    """ViT-S/16 at 224 px, 200 epochs: 74.5 % linear on ImageNet by its authors (arXiv 2602.05845); not measured here.

    Their AdamW, decay, clipping, stochastic depth and projector; two small crops and a covered view an image.
    """
    view = ViewConfig(crop_area=(0.25, 1.0), additive_brightness=False)
    return TrainConfig(
        preset="vit-small",
        arch="timm:vit_small_patch16_224",
        projector_layers=3,
        drop_path=0.1,
        view1=view,
        view2=replace(view, blur=0.1, solarize=0.2),
        local_views=2,
        local_size=96,
        local_area=(0.08, 0.25),
        cutout_views=1,
        batch_size=1024,
        accumulate=4,
        epochs=200,
        optimizer="adamw",
        lr=3e-4,
        beta2=0.98,
        weight_decay=0.1,
        clip_grad=0.5,
        tau=0.998,
    )


def vit_tiny() -> TrainConfig:
    """ViT-Ti/16 at 96 px for tens of thousands of images, 100 epochs: `vit-small` made smaller; not measured.

    Small sets see fewer steps, so the target follows faster and the heads are as narrow as those of the other small
    presets.
    """
    return vit_small().replace(
        preset="vit-tiny",
        arch="timm:vit_tiny_patch16_224",
        image_size=96,
        local_size=48,
        projector_hidden=1024,
        predictor_hidden=1024,
        batch_size=128,
        accumulate=1,
        epochs=100,
        lr=1e-3,
        warmup_epochs=5.0,
        tau=0.99,
    )
