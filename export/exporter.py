"""From a run or a checkpoint to a bundle: only the online encoder leaves, and only once it is proven."""

from __future__ import annotations

import copy
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import ModelProto
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors
from torch import Tensor

import byol
from byol.bundle.card import write_card
from byol.bundle.folder import describe_file, require_place
from byol.bundle.graph.judge import judge
from byol.bundle.manifest import (
    CLASSIFIER,
    ENCODER,
    ENCODER_WEIGHTS,
    GOLDEN,
    MANIFEST,
    WEIGHTS,
    Architecture,
    FileEntry,
    Graph,
    Manifest,
    Parity,
    PreprocessSpec,
)
from byol.bundle.model import Model, move_weights
from byol.children import python_running
from byol.encoders import TIMM
from byol.encoders.build import feature_dim
from byol.encoders.pretrained import Pretrained
from byol.export.additions import GOLDEN_IMAGES, Additions, Derived, classifier, derive, evaluate_variants
from byol.export.graph import INPUT, OUTPUT, encoder_to_onnx
from byol.export.parity import measure, sample_images, torch_features
from byol.export.source import read_run, read_untrained, untrained
from byol.files.atomic import atomic_folder
from byol.serve.fuse import Layer

ONLY_FP32 = Additions()


def export_bundle(
    source: str | Path | Pretrained,
    out: str | Path,
    additions: Additions = ONLY_FP32,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write the bundle of an encoder (a path: see `read_run`) to the folder `out`, replacing an older bundle there.

    `say` is told each stage.

    Raises `ValueError` or `OSError`, and leaves `out` as it was, when ONNX Runtime does not reproduce torch, when an
    addition is beyond its gate, or when the written files fail their own check.
    """
    out = Path(out)
    require_place(out)
    additions.require()
    given = source
    source = source if isinstance(source, Pretrained) else read_run(Path(source))
    encoder, size, mean, std = source.encoder, source.image_size, source.mean, source.std
    spec = _spec(source)
    contract = {"preprocess": json.dumps(vars(spec), sort_keys=True), "byol_version": byol.__version__}
    say("making the graph")
    proto = encoder_to_onnx(encoder, size, mean, std, contract)
    weights = move_weights(proto, ENCODER_WEIGHTS)
    if weights and (additions.precisions or additions.any_size):
        raise ValueError("--precision and --any-size are for encoders below 2 GB; leave them out")
    graph = Model(proto.SerializeToString(deterministic=True), weights)
    say("comparing ONNX Runtime with torch")
    parity, (images, features) = measure(encoder, graph, size, mean, std)
    golden = {"images": images[:GOLDEN_IMAGES].copy(), "features": features[:GOLDEN_IMAGES].copy()}
    graphs = {ENCODER: Derived(graph.graph, "fp32", parity, golden)}
    if additions.names:
        say(f"adding {', '.join(additions.names)}")
    graphs |= derive(proto, source.preprocess, golden["images"], additions)
    if source.layer and source.head:
        graphs[CLASSIFIER] = classifier(
            Model(graph.graph, weights), _layer(source.layer), source.head.classes, images, features
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out, MANIFEST) as folder:
        for name, content in weights.items():
            (folder / name).write_bytes(content)
        save_tensors({name: value.contiguous() for name, value in encoder.state_dict().items()}, folder / WEIGHTS)
        files = _write_graphs(folder, graphs) | {name: describe_file(folder / name) for name in (WEIGHTS, *weights)}
        manifest = write_card(_manifest(source, proto, spec, files), folder)
        if additions.eval_train and additions.eval_test:
            say("measuring kNN accuracy")
            with tempfile.TemporaryDirectory(prefix="byol-untrained-") as place:
                fresh = _export_untrained(given, Path(place) / "bundle") if additions.baselines else None
                evaluation = evaluate_variants(folder, additions.eval_train, additions.eval_test, fresh)
            manifest = write_card(replace(manifest, evaluation=evaluation), folder)
        say("checking the written files, without torch")
        prove(folder)
    return manifest


def _export_untrained(source: str | Path | Pretrained, out: Path) -> Path:
    export_bundle(untrained(source) if isinstance(source, Pretrained) else read_untrained(Path(source)), out)
    return out


def _layer(trained: tuple[Tensor, Tensor]) -> Layer:
    weight, bias = trained
    return Layer(weight.numpy(), bias.numpy())


def try_export(trained: Pretrained) -> None:
    """Raise `ValueError` when `export_bundle` would refuse an encoder, whatever its weights; nothing is written.

    The encoder stays as it is. Random weights whose features are not finite prove nothing about the figures.
    """
    source = replace(trained, encoder=copy.deepcopy(trained.encoder), training=None)
    encoder, size, mean, std = source.encoder, source.image_size, source.mean, source.std
    proto = encoder_to_onnx(encoder, size, mean, std)
    weights = move_weights(proto, ENCODER_WEIGHTS)
    graph = Model(proto.SerializeToString(), weights)
    parity = Parity(0.0, 1.0, 1, (1,), "none", "none", "torch", "none")
    if np.isfinite(torch_features(encoder, sample_images(1, size), mean, std)).all():
        parity, _ = measure(encoder, graph, size, mean, std, batch_sizes=(1, 2))
    unwritten = FileEntry("0" * 64, 0)
    files = {ENCODER: FileEntry("0" * 64, 0, "fp32", parity), WEIGHTS: unwritten, GOLDEN: unwritten}
    judge(ENCODER, graph.graph, _manifest(source, proto, _spec(source), files))


def _spec(source: Pretrained) -> PreprocessSpec:
    preprocess = source.preprocess
    return PreprocessSpec(
        preprocess.resize, preprocess.crop, source.mean, source.std, jpeg_margin=preprocess.jpeg_margin
    )


def _manifest(source: Pretrained, proto: ModelProto, spec: PreprocessSpec, files: dict[str, FileEntry]) -> Manifest:
    return Manifest(
        architecture=_architecture(source),
        feature_dim=feature_dim(source.encoder),
        image_size=source.image_size,
        preprocess=spec,
        onnx=Graph(proto.opset_import[0].version, proto.ir_version, INPUT, OUTPUT),
        files=files,
        training=source.training,
        origin=source.origin,
        classifier=source.head,
        finetuning=source.finetuning,
        untrained_seed=source.untrained_seed,
        byol_version=byol.__version__,
    )


def _write_graphs(folder: Path, graphs: dict[str, Derived]) -> dict[str, FileEntry]:
    """Write the graphs and the golden file; their entries in the manifest."""
    golden: dict[str, np.ndarray] = {}
    files = {}
    for name, graph in graphs.items():
        (folder / name).write_bytes(graph.model)
        files[name] = describe_file(folder / name, graph.precision, graph.parity)
        golden |= graph.golden
    save_arrays({name: np.ascontiguousarray(values) for name, values in golden.items()}, folder / GOLDEN)
    return {**files, GOLDEN: describe_file(folder / GOLDEN)}


def _architecture(source: Pretrained) -> Architecture:
    if not source.arch.startswith(TIMM):
        return Architecture("torchvision", source.arch, source.stem)
    from byol.encoders.timm_models import size_argument

    name = source.arch.removeprefix(TIMM)
    return Architecture("timm", name, source.stem, **size_argument(name, source.image_size))


_PROOF = """
sys.modules["torch"] = None  # any attempt to import torch fails
from byol.serve.proof import verify
problems = verify(sys.argv[1]).problems
sys.exit("; ".join(problems) if problems else 0)
"""


def prove(folder: Path) -> None:
    """Verify a written bundle in a new process that cannot import torch. Raises `ValueError` when it fails."""
    done = subprocess.run([*python_running(_PROOF), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise ValueError(f"export refused: the written files fail their own check: {reason}")
