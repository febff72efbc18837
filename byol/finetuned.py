"""The file of a fine-tuned classifier: `last.safetensors` in a folder that `byol finetune` wrote.

Tensors: `encoder.*` under the backbone's own names, `classifier.weight` (C, D), `classifier.bias` (C,). Metadata
(strings): format version, task, and as JSON `source` (how to rebuild and feed the encoder, what it was trained on) and
`head` (what a manifest says of the classifier).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from byol.checkpoint import finite, read_tensors, write_tensors
from byol.finetune import Classifier
from byol.model import build_encoder, load_strict
from byol.pretrained import Pretrained
from byol.run_format import FINETUNE
from byol.text import reason_of


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned classifier: `source.encoder` is the encoder now; `weight` (C, D) and `bias` (C,) follow it.

    `source.finetuning` says how; `head` holds the fields of a manifest's `classifier` (docs/bundle.md).
    """

    source: Pretrained
    weight: Tensor
    bias: Tensor
    head: dict[str, Any]


def save_finetuned(path: Path, model: Classifier, source: Pretrained, head: dict[str, Any]) -> None:
    """Write a classifier whose encoder was `source`'s. Raises `ValueError` when a weight is not finite."""
    tensors = model.state_dict()
    if not finite(tensors):
        raise ValueError("the fine-tuned weights are not all finite; leave out the highest --lr")
    facts = {field.name: getattr(source, field.name) for field in fields(source) if field.name != "encoder"}
    texts = {"source": json.dumps(facts, sort_keys=True), "head": json.dumps(head, sort_keys=True)}
    write_tensors(path, tensors, {"task": FINETUNE, **texts})


def read_finetuned(path: Path) -> FineTuned:
    """The inverse. Raises `ValueError` when the file is missing, damaged, or of another task."""
    tensors, metadata = read_tensors(path, FINETUNE)
    try:
        facts, head = (json.loads(metadata[name]) for name in ("source", "head"))
        encoder = build_encoder(facts["arch"], facts["stem"], facts["image_size"])
        source = Pretrained(encoder, **{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])})
        model = Classifier(encoder, len(head["classes"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has damaged metadata: {reason_of(error)}") from error
    load_strict(model, tensors, str(path))
    encoder.eval()
    return FineTuned(source, tensors["classifier.weight"], tensors["classifier.bias"], head)
