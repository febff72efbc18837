"""An encoder's origin and proof, as rows for people."""

from __future__ import annotations

import json
from typing import Any

from byol.bundle.folder import Bundle
from byol.bundle.manifest import ENCODER, FileEntry, Manifest
from byol.bundle.parity import GATES
from byol.serve.report.runs import Entry, Run

Rows = list[tuple[str, str]]


def provenance(entry: Entry) -> dict[str, Any]:
    """One entry's `files` and `parity` (bundle), `facts` (bundle and run) and `settings` (run, as JSON)."""
    facts: Rows = []
    if entry.bundle:
        facts += _bundle_facts(entry.bundle)
    if entry.run:
        facts += _run_facts(entry.run)
    manifest = entry.bundle.manifest if entry.bundle else None
    return {
        "name": entry.name,
        "files": [_file(name, file) for name, file in sorted(manifest.files.items())] if manifest else [],
        "parity": _parity(manifest) if manifest else "",
        "facts": facts,
        "settings": json.dumps(entry.run.config, indent=2, sort_keys=True) if entry.run else "",
    }


def _file(name: str, file: FileEntry) -> dict[str, str]:
    row = {"name": name, "size": _size(file.size), "sha256": file.sha256[:16]}
    parity = file.parity
    if parity is None:
        return row | {"reference": "", "error": "", "cosine": ""}
    return row | {
        "reference": f"torch {parity.torch}" if parity.torch else parity.reference,
        "error": f"{parity.max_relative_error:.1e}",
        "cosine": f"{parity.min_cosine:.7f}",
    }


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB" if count >= 1000 else f"{count} bytes"


def _parity(manifest: Manifest) -> str:
    """How the figures of the table were measured."""
    parity = manifest.files[ENCODER].parity
    assert parity is not None  # the manifest's own check
    return (
        f"At export ONNX Runtime {parity.onnxruntime} ({parity.provider}) computed the features of {parity.images} "
        "images and was compared with the reference; an error beyond the gate "
        f"({GATES[ENCODER].max_relative_error:g} for {ENCODER}) refuses it."
    )


def _bundle_facts(bundle: Bundle) -> Rows:
    manifest = bundle.manifest
    architecture, preprocess = manifest.architecture, manifest.preprocess
    stem = f", {architecture.stem} stem" if architecture.library == "torchvision" else ""
    rows = [
        ("Bundle", f"SHA-256 {bundle.digest}"),
        ("Encoder", f"{architecture.name} ({architecture.library}{stem}), {manifest.feature_dim} features"),
        (
            "Input",
            f"uint8 RGB, {manifest.image_size} x {manifest.image_size}; shorter side to {preprocess.resize}, "
            f"central {preprocess.crop} x {preprocess.crop}, bicubic",
        ),
        ("Graph", f"ONNX opset {manifest.onnx.opset}, IR {manifest.onnx.ir_version}"),
        ("Exported by", f"byol {manifest.byol_version}"),
    ]
    training, origin, tuning = manifest.training, manifest.origin, manifest.finetuning
    if training:
        rows.append(("Trained on", f"{training} (settings: SHA-256 {training.config_sha256[:16]})"))
    elif manifest.untrained_seed is not None:
        rows.append(("Trained", f"not at all: random weights of seed {manifest.untrained_seed}"))
    elif not (tuning and tuning.from_scratch):
        read = f"; read from {origin.file} ({origin.toolkit}, SHA-256 {origin.sha256[:16]})" if origin else ""
        rows.append(("Trained", f"elsewhere: the bundle holds no training summary{read}"))
    if tuning:
        start = ", from random weights" if tuning.from_scratch else ""
        rows.append(
            ("Fine-tuned on", f"{tuning.data}: {tuning.images:,} labelled images, {tuning.epochs} epochs{start}")
        )
    return rows


def _run_facts(run: Run) -> Rows:
    versions, data = run.facts.get("versions", {}), run.facts.get("data", {})
    last = run.records[-1]
    speed = f", {last['images_per_second']:,.0f} images/s at the end" if "images_per_second" in last else ""
    rows = [
        ("Run", f"{last['step']:,} steps, {last['epoch']:g} epochs{speed}"),
        ("Data", f"{data['name']}, {data['images']:,} images, digest {data['digest']}" if data else ""),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Commit", str(run.facts.get("git_commit") or "")),
    ]
    return [(name, value) for name, value in rows if value]
