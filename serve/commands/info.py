"""`byol info`: what a bundle holds, and whether it is intact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import show_json, show_table
from byol.serve.commands.options import BUNDLE, json_option
from byol.text import printable

if TYPE_CHECKING:
    from byol.bundle.folder import Bundle


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--verify", is_flag=True, help="Check every hash and run the golden inputs.")
@json_option
def info(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show what BUNDLE holds; with --verify, check its hashes and golden outputs."""
    opened, values = info_json(bundle, verify)
    if as_json:
        show_json(values)
    else:
        show_table(info_rows(opened) + (verify_rows(values["verify"]) if verify else []))
    if verify and not values["verify"]["ok"]:
        raise ValueError("; ".join(values["verify"]["problems"]))


def info_json(folder: Path, verify: bool) -> tuple[Bundle, dict[str, Any]]:
    """The bundle; and its path, digest, manifest and, if asked, the result of `verify` as JSON values."""
    from byol.bundle.folder import Bundle
    from byol.serve.proof import verify as verify_bundle

    bundle = Bundle.open(folder)
    values: dict[str, Any] = {
        "bundle": printable(folder),
        "sha256": bundle.digest,
        "manifest": json.loads(bundle.manifest.to_json()),
    }
    if verify:
        report = verify_bundle(folder)
        golden = {name: {k: _finite(v) for k, v in figures.items()} for name, figures in report.golden.items()}
        values["verify"] = {"ok": report.ok, "files": report.files, "golden": golden, "problems": report.problems}
    return bundle, values


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if abs(value) < float("inf") else None


def info_rows(bundle: Bundle) -> list[tuple[str, object]]:
    """The manifest for people."""
    manifest = bundle.manifest
    architecture, training, size = manifest.architecture, manifest.training, manifest.image_size
    stem = "" if architecture.library == "timm" else f", {architecture.stem} stem"
    rows: list[tuple[str, object]] = [
        ("bundle", printable(bundle.folder)),
        ("sha256", bundle.digest),
        ("encoder", f"{architecture.name} ({architecture.library}{stem})"),
        ("input", f"{manifest.onnx.input}: uint8 [batch, {size}, {size}, 3], RGB"),
        ("output", f"{manifest.onnx.output}: float32 [batch, {manifest.feature_dim}]"),
        (
            "preprocess",
            f"shorter side to {manifest.preprocess.resize}, centre crop {manifest.preprocess.crop}, bicubic",
        ),
        ("onnx", f"opset {manifest.onnx.opset}, IR {manifest.onnx.ir_version}"),
        ("written by", f"byol {manifest.byol_version}"),
    ]
    if training:
        rows.append(("training", str(training)))
    if manifest.untrained_seed is not None:
        rows.append(("training", f"none: random weights of seed {manifest.untrained_seed}"))
    if manifest.finetuning:
        tuning = manifest.finetuning
        start = ", from random weights" if tuning.from_scratch else ""
        rows.append(("fine-tuning", f"{tuning.data}, {tuning.images:,} labelled images, {tuning.epochs} epochs{start}"))
    for name, entry in sorted(manifest.files.items()):
        text = f"{entry.size:,} bytes"
        if entry.parity:
            parity = entry.parity
            text += (
                f", {entry.precision}, relative error {parity.max_relative_error:.1e}, cosine {parity.min_cosine:.7f}"
            )
        rows.append((name, text))
    return rows


def verify_rows(report: dict[str, Any]) -> list[tuple[str, object]]:
    """The result of `verify` for people."""
    rows: list[tuple[str, object]] = [(f"verify {name}", result) for name, result in report["files"].items()]
    for name, figures in report["golden"].items():
        error = figures["max_relative_error"]
        text = "not finite" if error is None else f"relative error {error:.1e}, cosine {figures['min_cosine']:.7f}"
        rows.append((f"golden {name}", f"{figures['images']} images, {text}"))
    return [*rows, ("verified", "yes" if report["ok"] else "NO")]
