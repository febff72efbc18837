"""The model card: the README.md of a bundle, for whoever meets it without this project at hand."""

from __future__ import annotations

from byol.serve.manifest import ENCODER, Architecture, Manifest

_CARD = """---
library_name: onnxruntime
pipeline_tag: image-feature-extraction
tags: [self-supervised, byol, onnx]
---

# {name} encoder, trained by BYOL

Maps an RGB image to {dim} features. Trained without labels by BYOL (arXiv 2006.07733){training}.
Teacher, projector and predictor are not in here.

## Use

```python
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("encoder.onnx")
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
side = {crop} * min(image.size) / {resize}
left, top = (image.width - side) / 2, (image.height - side) / 2
image = image.resize(({crop}, {crop}), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
features = session.run(["features"], {{"images": np.asarray(image)[None]}})[0]  # (1, {dim}) float32
```

Or `pip install byol` and `byol extract BUNDLE IMAGES --out features.parquet`.

## Interface

| | |
|---|---|
| input | `images` uint8 [batch, {crop}, {crop}, 3], RGB, 0 to 255; normalisation is inside the graph |
| output | `features` float32 [batch, {dim}], pooled, not L2-normalised |
| preprocessing | EXIF orientation applied, shorter side to {resize}, central {crop} x {crop}, bicubic, antialiased |
| graph | ONNX opset {opset}, IR version {ir}; no batch-norm left |
| weights | `encoder.safetensors`, {library} names: {rebuild} |

## Proof

ONNX Runtime {ort} ({provider}) reproduced torch {torch} at batch sizes {batches}: largest relative error
{error:.1e}, smallest cosine {cosine:.7f}. `golden.safetensors` holds inputs and expected features;
`byol info --verify BUNDLE` checks every file's hash and repeats the comparison.
"""


def model_card(manifest: Manifest) -> str:
    """The text of the card; `manifest` need not list the card itself."""
    parity = manifest.files[ENCODER].parity
    assert parity is not None  # the manifest's own check
    training = manifest.training
    trained_on = f" on {training.images} images, {training.epochs:g} epochs" if training else ""
    return _CARD.format(
        name=manifest.architecture.name,
        library=manifest.architecture.library,
        rebuild=_rebuild(manifest.architecture),
        dim=manifest.feature_dim,
        training=trained_on,
        crop=manifest.preprocess.crop,
        resize=manifest.preprocess.resize,
        opset=manifest.onnx.opset,
        ir=manifest.onnx.ir_version,
        ort=parity.onnxruntime,
        torch=parity.torch,
        provider=parity.provider,
        batches=", ".join(map(str, parity.batch_sizes)),
        error=parity.max_relative_error,
        cosine=parity.min_cosine,
    )


def _rebuild(architecture: Architecture) -> str:
    """The module that takes the weights with strict=True, in words and code."""
    if architecture.library == "timm":
        size = f", img_size={architecture.img_size}" if architecture.img_size else ""
        return f'`timm.create_model("{architecture.name}", num_classes=0{size})`'
    stem = ", with the CIFAR stem (3x3 convolution, no max-pool)" if architecture.stem == "cifar" else ""
    return f"`{architecture.library}.models.{architecture.name}` without `fc`{stem}"
