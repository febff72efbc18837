"""Fuse a linear layer into a bundle's encoder: `classifier.onnx`, images in, logits and probabilities out.

Shapes: N images, D features, C classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from byol.bundle.card import write_card
from byol.bundle.folder import Bundle, describe_file, require_place
from byol.bundle.manifest import CARD, CLASSIFIER, ENCODER, GOLDEN, MANIFEST, Manifest
from byol.bundle.measured import Head
from byol.bundle.model import Model, check_graph
from byol.files.atomic import atomic_folder
from byol.serve.evaluate.linear import LinearProbe
from byol.serve.parity import pass_gate, run_graph
from byol.serve.proof import verify


@dataclass(frozen=True)
class Layer:
    """logits = weight (features - mean) + bias: `weight` (C, D), `bias` (C,), `mean` (D,) or None for zero."""

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray | None = None

    @classmethod
    def of_probe(cls, probe: LinearProbe) -> Layer:
        """The layer of a fitted probe, with the features centred first.

        Features that hardly vary have large weights, which would cancel in float32.
        """
        return cls(probe.coef_, probe.intercept_ + probe.coef_ @ probe.mean_, probe.mean_)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Logits float32 (N, C) of features (N, D), computed in float64."""
        x = features.astype(np.float64) - (0 if self.mean is None else self.mean)
        logits: np.ndarray = x @ self.weight.T + self.bias
        return logits.astype(np.float32)


def save_classifier(bundle: Path, probe: LinearProbe, head: Head, out: Path) -> Manifest:
    """Write the bundle with the probe fused to its fp32 encoder to the folder `out` (which may be `bundle` itself).

    That the probe was fitted on this encoder's features is for the caller to know. Raises `ValueError`, leaving `out`
    as it was, when they were of another width, `out` is not a bundle, or the fused graph does not reproduce the probe.
    """
    opened = Bundle.open(bundle)
    require_place(out)
    if probe.n_features_in_ != opened.manifest.feature_dim:
        raise ValueError(
            f"the probe was fitted on {probe.n_features_in_} features, but {bundle} has {opened.manifest.feature_dim}"
        )
    images, _ = opened.golden()
    name = opened.manifest.onnx.input
    encoder = opened.model(ENCODER)
    layer = Layer.of_probe(probe)
    logits = layer(run_graph(encoder, name, [images]))  # (N, C)
    proto = fuse(onnx.load_model_from_string(encoder.graph), layer, head.classes)
    check_graph(proto, encoder.weights)
    model = Model(proto.SerializeToString(deterministic=True), encoder.weights)  # weights outside serve both graphs
    parity = pass_gate(CLASSIFIER, model, name, [images], logits, f"{ENCODER} and the fitted probe")
    kept = [file for file in opened.manifest.files if file not in (CLASSIFIER, GOLDEN, CARD)]
    tensors = {key: value for key, value in opened.golden_tensors().items() if key != CLASSIFIER}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out, MANIFEST) as folder:
        for file in kept:
            (folder / file).write_bytes(opened.read(file))
        (folder / CLASSIFIER).write_bytes(model.graph)
        save_file({**tensors, CLASSIFIER: logits}, folder / GOLDEN)
        files = {file: opened.manifest.files[file] for file in kept}
        files |= {
            CLASSIFIER: describe_file(folder / CLASSIFIER, "fp32", parity),
            GOLDEN: describe_file(folder / GOLDEN),
        }
        manifest = write_card(replace(opened.manifest, classifier=head, files=files), folder)
        problems = verify(folder).problems
        if problems:
            raise ValueError(f"the classifier is refused: {'; '.join(problems)}")
    return manifest


def fuse(encoder: ModelProto, layer: Layer, classes: tuple[str, ...]) -> ModelProto:
    """The encoder's graph with the layer behind it; inputs `images`, outputs `logits` and `probabilities` (N, C)."""
    model = ModelProto()
    model.CopyFrom(encoder)
    graph, features = model.graph, model.graph.output[0].name
    constants = {"classifier_weight": layer.weight, "classifier_bias": layer.bias}
    if layer.mean is not None:
        constants["classifier_mean"] = layer.mean
        graph.node.append(helper.make_node("Sub", [features, "classifier_mean"], ["centred"], "Sub_classifier"))
        features = "centred"  # (N, D)
    graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()
    )
    graph.node.extend(
        [
            helper.make_node(
                "Gemm", [features, "classifier_weight", "classifier_bias"], ["logits"], "Gemm_classifier", transB=1
            ),
            helper.make_node("Softmax", ["logits"], ["probabilities"], "Softmax_classifier", axis=1),
        ]
    )
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, len(classes)])
        for name in ("logits", "probabilities")
    )
    graph.name = "classifier"
    properties = {item.key: item.value for item in model.metadata_props}
    helper.set_model_props(model, {**properties, "classes": json.dumps(classes, ensure_ascii=False)})
    return model
