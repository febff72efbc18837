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

import torch

from byol.bundle.manifest import Finetuning, Origin, Training
from byol.bundle.measured import Head
from byol.bundle.schema import build, plain
from byol.encoders.build import build_encoder, load_strict, require_fit
from byol.encoders.pretrained import Pretrained
from byol.finetuning.tuner import Classifier
from byol.run import FINETUNE
from byol.strict_json import check_fields, read_object
from byol.text import printable
from byol.training.checkpoint import checkpoint_file, damaged_metadata, finite, read_tensors, write_tensors
from byol.training.config import LARGEST


@dataclass(frozen=True)
class _Rebuilt:
    """How to rebuild and feed an encoder, as stored in a file. Raises `ValueError` for values of other types."""

    arch: str
    stem: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 1 <= self.image_size <= LARGEST["image_size"]:
            raise ValueError(f"image_size is {self.image_size}; expected 1 to {LARGEST['image_size']:,}")
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(f"resize is {self.resize}; expected image_size ({self.image_size}) or more, or null")

    def classifier(self, classes: int) -> Classifier:
        """The encoder and a layer behind it."""
        return Classifier(build_encoder(self.arch, self.stem, self.image_size), classes)


def _classes(head: dict[str, Any]) -> list[str]:
    classes = head["classes"]
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"head.classes is {classes!r:.40}; expected a list of names")
    return classes


def save_finetuned(path: Path, model: Classifier, source: Pretrained) -> None:
    """Write a classifier made from `source`, whose `head` and `finetuning` say how.

    Raises `ValueError` when a weight is not finite.
    """
    tensors = model.state_dict()
    if not finite(tensors):
        raise ValueError("some fine-tuned weights are not finite; leave out the highest --lr")
    names = [field.name for field in fields(source) if field.name not in ("encoder", "layer", "head")]
    facts = {name: plain(getattr(source, name)) for name in names}
    texts = {"source": json.dumps(facts, sort_keys=True), "head": json.dumps(plain(source.head), sort_keys=True)}
    write_tensors(path, tensors, {"task": FINETUNE, **texts})


def read_finetuned(path: Path) -> Pretrained:
    """The inverse of `save_finetuned`. Raises `ValueError` when the file is missing, damaged, or of another task."""
    path = checkpoint_file(path)
    tensors, metadata = read_tensors(path, FINETUNE)
    with damaged_metadata(path):
        facts, head = (read_object(metadata[name]) for name in ("source", "head"))
        count = len(_classes(head))
        required = {name: facts.pop(name) for name in ("arch", "stem", "image_size", "mean", "std")}
        rebuilt = _Rebuilt(**required, resize=facts.pop("resize", None))  # files of earlier versions do not say
        with torch.device("meta"):
            expected = rebuilt.classifier(count).state_dict()
    require_fit(expected, tensors, printable(path))  # before memory is taken: a small file can name a large model
    model = rebuilt.classifier(count)
    load_strict(model, tensors, printable(path))
    with damaged_metadata(path):
        kinds = {"training": Training, "origin": Origin, "finetuning": Finetuning}
        known = {name: build(kind, facts[name]) for name, kind in kinds.items() if facts.get(name)}
        return Pretrained(
            model.encoder.eval(),
            **vars(rebuilt),
            **{**facts, **known},
            layer=(tensors["classifier.weight"], tensors["classifier.bias"]),
            head=build(Head, head),
        )
