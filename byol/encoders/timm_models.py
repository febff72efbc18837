"""Encoders from timm, for `--arch timm:NAME`. Nothing else imports timm.

Legend: B batch, S view pixels, D feature.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.layers.drop import DropPath
from timm.models import get_pretrained_cfg
from torch import nn

EXAMPLES = ("resnet10t", "convnext_atto", "vit_tiny_patch16_224")  # the smallest of three families


def check_name(name: str) -> None:
    """Raise `ValueError`, with the nearest names, unless timm has an architecture of this name."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = _near(architecture)
        hint = f"did you mean {' or '.join(near)}?" if near else f"take one such as {', '.join(EXAMPLES)};"
        lists = "docs/export.md lists those that were exported, timm.list_models() all"
        raise ValueError(f"timm {timm.__version__} has no model {name!r}; {hint} {lists}")
    if name != architecture:
        raise ValueError(
            f"timm:{name} names the pretrained weights {tag!r}, but training starts from random ones: "
            f"use timm:{architecture}"
        )


def _near(name: str) -> list[str]:
    """Up to three names that begin with this one, are like it, or begin like it; the shortest first."""
    known = sorted((model for model in timm.list_models() if not model.startswith("test_")), key=len)
    if not name:
        return []
    begun = [model for model in known if model.startswith(name)][:3]
    cut = {model[: len(name)]: model for model in reversed(known)}  # of equal beginnings the shortest name stays
    like = difflib.get_close_matches(name, cut, n=3)
    return begun or difflib.get_close_matches(name, known, n=3) or [cut[beginning] for beginning in like]


def size_argument(name: str, image_size: int) -> dict[str, Any]:
    """`{"img_size": S}` for a model that timm builds for one image size (ViT, Swin), else nothing."""
    config = get_pretrained_cfg(name)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def input_config(name: str) -> tuple[str, dict[str, Any]]:
    """A model's name with its tag, and how its pretrained weights were fed, as timm itself resolves it.

    Keys: `input_size` (3, S, S), `crop_pct`, `crop_mode`, `interpolation`, `mean`, `std`. Without a tag, timm's default
    applies. Raises `ValueError` for a tag that timm does not have.
    """
    architecture, _, tag = name.partition(".")
    check_name(architecture)
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        raise ValueError(f"timm has no weights {tag!r} of {architecture}; expected {', '.join(tags)}") from error
    known = config.to_dict() if config else {}  # type: ignore[no-untyped-call]
    full_name = f"{architecture}.{known['tag']}" if known.get("tag") else architecture
    return full_name, resolve_data_config(pretrained_cfg=known)  # type: ignore[no-untyped-call]


def classifier_tensors(name: str) -> set[str]:
    """The names of the tensors that a model has only with its classifier."""
    check_name(name)
    with torch.device("meta"):
        whole, bare = timm.create_model(name), timm.create_model(name, num_classes=0)
    return set(whole.state_dict()) - set(bare.state_dict())


def build_timm_encoder(
    name: str, image_size: int, further_sizes: Sequence[int] = (), drop_path: float = 0.0
) -> nn.Module:
    """timm's model without its classifier, with random weights: (B, 3, S, S) to (B, D), D its `head_hidden_size`.

    S is `image_size`, in training also one of `further_sizes`. Dropout stays at timm's default, off: BYOL's views are
    its noise; `drop_path` is the rate of stochastic depth. Raises `ValueError` for an unknown name, and for a model
    that makes no feature vector of an image of these sizes.
    """
    check_name(name)
    where, arguments = f"timm:{name} at {image_size} px", {"num_classes": 0, **size_argument(name, image_size)}
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    if further_sizes and size_argument(name, image_size):
        arguments["dynamic_img_size"] = True
        where += f" and {', '.join(map(str, further_sizes))} px"
    try:
        with torch.device("meta"), torch.no_grad():  # a trial that takes no memory, whatever the size
            trial: nn.Module = timm.create_model(name, pretrained=False, **arguments)
            for size in (image_size, *further_sizes):
                shape = tuple(trial.eval()(torch.zeros(1, 3, size, size)).shape)
                if shape != (1, trial.head_hidden_size):
                    raise ValueError(f"it returns {shape} for one image, not one feature vector")
        encoder: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # whatever some model of timm's raises when the size or the call does not suit it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if "dynamic_img_size" in reason:
            raise ValueError(
                f"timm:{name} takes one image size only; add --set start_size=0 --set local_views=0"
            ) from error
        raise ValueError(f"{where} cannot be built: {reason}; choose another --image-size or --arch") from error
    return encoder.train()


def without_drop_path(module: nn.Module) -> None:
    """Turn stochastic depth off."""
    for layer in module.modules():
        if isinstance(layer, DropPath):
            layer.drop_prob = 0.0
