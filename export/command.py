"""`byol export`: a run in, a verified bundle out."""

from __future__ import annotations

from pathlib import Path

import click
import onnxscript  # noqa: F401 - torch.onnx needs it; missing, it is reported before any work is done
import torch  # noqa: F401

from byol.export.bundle import export_bundle
from byol.serve.manifest import ENCODER


@click.command()
@click.argument("source", metavar="RUN|CHECKPOINT", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle.")
def export(source: Path, out: Path) -> None:
    """Write the online encoder of a run folder, or of one checkpoint file, as a verified bundle.

    Nothing is written unless ONNX Runtime reproduces torch.
    """
    manifest = export_bundle(source, out)
    parity = manifest.files[ENCODER].parity
    assert parity is not None  # the manifest's own check
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    click.echo(
        f"{out}: {manifest.architecture.name}, "
        f"{manifest.image_size} px to {manifest.feature_dim} features, {size:.0f} MB\n"
        f"verified: relative error {parity.max_relative_error:.1e}, cosine {parity.min_cosine:.7f} "
        f"against torch at batch sizes {', '.join(map(str, parity.batch_sizes))}"
    )
