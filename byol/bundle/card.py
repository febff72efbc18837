"""The model card: the README.md of a bundle, for whoever meets it without this project at hand.

A manifest's words may be a stranger's (names of folders, classes, files; those of a bundle that got a classifier), so
every one of them stands in a code span, where it is no link, picture or HTML.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from byol.bundle.folder import describe_file
from byol.bundle.manifest import ANY_SIZE, CARD, ENCODER, Architecture, Manifest, Origin
from byol.bundle.measured import BASELINES, Evaluation
from byol.text import code_span

_CARD = """---
library_name: onnxruntime
pipeline_tag: image-feature-extraction
tags: [self-supervised, byol, onnx]
---

# {name} encoder{by_byol}

Maps an RGB image to {dim} features. {training}
The target network, projector and predictor are not included.

## Use

```python
import os
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import; otherwise ONNX Runtime reports usage
import numpy as np, onnxruntime
from PIL import Image


def upright(image):  # rotated as EXIF says; nothing else in EXIF is read, as it may be damaged
    image.load()
    try:
        return image.transpose({{2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}}[image.getexif()[274]])
    except Exception:  # EXIF does not say
        return image


session = onnxruntime.InferenceSession("encoder.onnx")
image = upright(Image.open("photo.jpg"))
if image.mode.startswith("I;16") or (image.mode == "I" and image.getextrema()[1] > 255):  # 16-bit grey
    image = Image.fromarray(np.rint(np.asarray(image) / 257.0).clip(0, 255).astype(np.uint8))
image = image.convert("RGB")
side = {crop} * min(image.size) / {resize}
left, top = (image.width - side) / 2, (image.height - side) / 2
image = image.resize(({crop}, {crop}), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
features = session.run(["features"], {{"images": np.asarray(image)[None]}})[0]  # (1, {dim}) float32
```

With byol, installed from its source (a package of that name in an index may be somebody else's):
`byol extract BUNDLE IMAGES --out features.parquet`.
{any_size}{classifier}
## Interface

| | |
|---|---|
| input | `images` uint8 [batch, {crop}, {crop}, 3], RGB, 0 to 255; normalisation is inside the graph |
| output | `features` float32 [batch, {dim}], pooled, not L2-normalised |
| preprocessing | EXIF orientation applied, shorter side to {resize}, central {crop} x {crop}, bicubic, antialiased |
| graph | ONNX opset {opset}, IR version {ir}; no batch-norm nodes |
| weights | `encoder.safetensors`, {rebuild} |

## Proof

| graph | reproduces | images | largest relative error | smallest cosine |{top1_title}
|---|---|---|---|---|{top1_rule}
{graphs}

Measured with ONNX Runtime {ort}. {evaluation}`golden.safetensors` holds inputs and expected outputs;
`byol info --verify BUNDLE` checks every file's hash and repeats the comparison.
"""

_ANY_SIZE = """
`encoder.any-size.onnx` resizes and crops inside the graph: hand over decoded pictures of one size.

```python
session = onnxruntime.InferenceSession("encoder.any-size.onnx")
features = session.run(["features"], {"images": np.asarray(picture)[None]})[0]  # picture: any (H, W, 3) uint8
```
"""

_CLASSIFIER = """
`classifier.onnx` adds a linear layer for {count} classes: `session.run(["probabilities"], {{"images": ...}})` returns
(N, {count}) float32 in the order of `classes` in `manifest.json`, which the graph's metadata repeat. Fitted on
{n_train} images of {train} ({how}){score}. With byol: `byol classify BUNDLE IMAGES --out FILE`.
"""


def write_card(manifest: Manifest, folder: Path) -> Manifest:
    """Write card and manifest of a bundle whose other files are written; returns the manifest with the card in it."""
    (folder / CARD).write_text(model_card(manifest), encoding="utf-8")
    whole = replace(manifest, files={**manifest.files, CARD: describe_file(folder / CARD)})
    whole.write(folder)
    return whole


def model_card(manifest: Manifest) -> str:
    """The text of the card; `manifest` need not list the card itself."""
    parity = manifest.files[ENCODER].parity
    assert parity is not None  # the manifest's own check
    measured = manifest.evaluation
    return _CARD.format(
        name=code_span(manifest.architecture.name),
        by_byol=", trained by BYOL" if manifest.training else "",
        rebuild=_rebuild(manifest.architecture),
        dim=manifest.feature_dim,
        training=_provenance(manifest),
        any_size=_ANY_SIZE if ANY_SIZE in manifest.files else "",
        classifier=_classifier(manifest),
        crop=manifest.preprocess.crop,
        resize=manifest.preprocess.resize,
        opset=manifest.onnx.opset,
        ir=manifest.onnx.ir_version,
        ort=code_span(f"{parity.onnxruntime} ({parity.provider})"),
        top1_title=" kNN top-1 |" if measured else "",
        top1_rule="---|" if measured else "",
        graphs="\n".join(_graph_row(manifest, name) for name in manifest.graphs),
        evaluation=_measured(measured) if measured else "",
    )


def _measured(found: Evaluation) -> str:
    return (
        f"kNN (k {found.k}, temperature {found.temperature:g}): {found.n_test} images of {code_span(found.test)}, bank "
        f"of {found.n_train} of {code_span(found.train)}{_baselines('kNN', found.baselines)}. "
    )


def _baselines(measured_by: str, top1: dict[str, float] | None) -> str:
    """What the encoder was measured beside, as the end of a sentence; empty where it was not."""
    shares = [f"{BASELINES[name]} {value:.2%}" for name, value in sorted((top1 or {}).items(), reverse=True)]
    return f"; by the same {measured_by}: {', '.join(shares)}" if shares else ""


def _provenance(manifest: Manifest) -> str:
    training, origin, tuning = manifest.training, manifest.origin, manifest.finetuning
    if manifest.untrained_seed is not None:
        return f"It is untrained: its weights are random, of seed {manifest.untrained_seed}, to compare others with."
    if tuning and tuning.from_scratch:
        return f"Trained with labels, from random weights, on {tuning.images} images of {code_span(tuning.data)}."
    with_labels = f" Then fine-tuned on {tuning.images} labelled images of {code_span(tuning.data)}." if tuning else ""
    if training is None:
        return f"Its weights were trained elsewhere.{_read_from(origin) if origin else ''}{with_labels}"
    return (
        f"Trained without labels by BYOL (arXiv 2006.07733) on {training.images} images, {training.epochs:g} epochs"
        + (f", started from the weights {code_span(training.init)}." if training.init else ".")
        + with_labels
    )


def _read_from(origin: Origin) -> str:
    digest = f"SHA-256 {code_span(origin.sha256)}"
    return f" They were read from {code_span(origin.file)} ({code_span(origin.toolkit)}, {digest})."


def _classifier(manifest: Manifest) -> str:
    head = manifest.classifier
    if head is None:
        return ""
    how = "together with the encoder" if head.l2 is None else f"l2 {head.l2:g}"
    score = ""
    if head.top1 is not None and head.test is not None:
        score = f"; it\nclassifies {head.top1:.2%} of {head.n_test} images of {code_span(head.test)} correctly"
    train = code_span(head.train)
    return _CLASSIFIER.format(
        count=len(head.classes),
        how=how,
        score=score + _baselines("probe", head.baselines),
        n_train=head.n_train,
        train=train,
    )


def _graph_row(manifest: Manifest, name: str) -> str:
    parity = manifest.files[name].parity
    assert parity is not None
    reference = f"torch {parity.torch}" if parity.torch else parity.reference
    figures = f"{parity.images} | {parity.max_relative_error:.1e} | {parity.min_cosine:.7f}"
    row = f"| `{name}` | {code_span(reference, in_table=True)} | {figures} |"
    if manifest.evaluation is None:
        return row
    top1 = manifest.evaluation.top1.get(name)
    return f"{row} {f'{top1:.2%}' if top1 is not None else ''} |"


def _rebuild(architecture: Architecture) -> str:
    """Whose names the weights have, and the module that takes them with strict=True, in words and code."""
    if architecture.library == "timm":
        size = f", img_size={architecture.img_size}" if architecture.img_size else ""
        call = f"timm.create_model({json.dumps(architecture.name)}, num_classes=0{size})"
        return f"timm names: {code_span(call, in_table=True)}"
    cifar = ", with the CIFAR stem (3x3 convolution, no max-pool)"
    stems = {
        "cifar": cifar,
        "cifar-no-relu": f"{cifar} and no ReLU after it",
        "cifar-padded": ", with solo-learn's CIFAR stem (3x3 convolution padded by 2, no max-pool)",
        "imagenet-same": ", with strided layers padded at the end as TensorFlow does",
    }
    stem = stems.get(architecture.stem, "")
    library, model = architecture.library, f"{architecture.library}.models.{architecture.name}"
    return f"{code_span(library, True)} names: {code_span(model, True)} without `fc`{stem}"
