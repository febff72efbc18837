"""The file of a fine-tuned classifier: `last.safetensors` in a folder that `byol finetune` wrote.

Tensors: `encoder.*` under the backbone's own names, `classifier.weight` (C, D), `classifier.bias` (C,). Metadata
(strings): format version, task, and as JSON `source` (how to rebuild and feed the encoder, where it came from),
`finetuning` and `head` (what a manifest says of the fine-tuning and of the classifier).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from byol.checkpoint import FINETUNE, finite, read_tensors, strip, write_tensors
from byol.finetune import Classifier
from byol.model import build_encoder, load_strict
from byol.pretrained import Pretrained


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned classifier. `source.encoder` is the encoder now; `weight` (C, D) and `bias` (C,) follow it.

    `finetuning` and `head` hold the fields of a manifest's `finetuning` and `classifier` (docs/bundle.md).
    """

    source: Pretrained
    weight: Tensor
    bias: Tensor
    finetuning: dict[str, Any]
    head: dict[str, Any]


def save_finetuned(
    path: Path, model: Classifier, source: Pretrained, finetuning: dict[str, Any], head: dict[str, Any]
) -> None:
    """Write a classifier whose encoder was `source`'s. Raises `ValueError` when a weight is not finite."""
    tensors = model.state_dict()
    if not finite(tensors):
        raise ValueError("the fine-tuned weights are not all finite; leave out the highest --lr")
    built = {field.name: getattr(source, field.name) for field in fields(source) if field.name != "encoder"}
    facts = {"source": built, "finetuning": finetuning, "head": head}
    texts = {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}
    write_tensors(path, tensors, {"task": FINETUNE, **texts})


def read_finetuned(path: Path) -> FineTuned:
    """The inverse. Raises `ValueError` when the file is missing, damaged, or of another task."""
    tensors, metadata = read_tensors(path, FINETUNE)
    try:
        built, finetuning, head = (json.loads(metadata[name]) for name in ("source", "finetuning", "head"))
        encoder = build_encoder(built["arch"], built["stem"], built["image_size"])
        source = Pretrained(encoder, **{**built, "mean": tuple(built["mean"]), "std": tuple(built["std"])})
        model = Classifier(encoder, len(head["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has damaged metadata: {error}") from error
    load_strict(model, tensors, str(path))
    weights = strip(tensors, "classifier.")
    return FineTuned(replace(source, encoder=encoder.eval()), weights["weight"], weights["bias"], finetuning, head)
