"""`byol export`: a run in, a verified bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import onnxscript  # noqa: F401 - torch.onnx needs it; missing, it is reported before any work is done
import torch  # noqa: F401

from byol.export.additions import Additions
from byol.export.bundle import export_bundle
from byol.serve.manifest import Manifest

_EXISTING = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("source", metavar="RUN|CHECKPOINT", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp16", "int8"]),
    multiple=True,
    help="Add the encoder with fewer bits (repeat for both).",
)
@click.option("--calibrate", type=_EXISTING, help="Images that are typical of the use, for int8; labels do not matter.")
@click.option("--any-size", is_flag=True, help="Add an encoder that resizes and crops pictures itself.")
@click.option("--eval-train", type=_EXISTING, help="Labelled images: the bank for the kNN accuracy of every variant.")
@click.option("--eval-test", type=_EXISTING, help="Labelled images: the queries.")
def export(source: Path, out: Path, **wanted: Any) -> None:
    """Write the online encoder of a run folder, or of one checkpoint file, as a verified bundle.

    Nothing is written unless ONNX Runtime reproduces torch, and every added graph the encoder.
    """
    try:
        additions = Additions(**wanted)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    manifest = export_bundle(source, out, additions)
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    click.echo(
        f"{out}: {manifest.architecture.name}, "
        f"{manifest.image_size} px to {manifest.feature_dim} features, {size:.0f} MB"
    )
    for name in manifest.graphs:
        click.echo(f"verified: {_proof(manifest, name)}")


def _proof(manifest: Manifest, name: str) -> str:
    """A graph's figures in one line."""
    parity = manifest.files[name].parity
    assert parity is not None  # the manifest's own check
    text = (
        f"{name}: relative error {parity.max_relative_error:.1e}, cosine {parity.min_cosine:.7f} against "
        f"{parity.reference} at batch sizes {', '.join(map(str, parity.batch_sizes))}"
    )
    top1 = manifest.evaluation.top1.get(name) if manifest.evaluation else None
    return text if top1 is None else f"{text}; kNN top-1 {top1:.2%}"
