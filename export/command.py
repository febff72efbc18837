"""`byol export`: a run in, a verified bundle out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import onnxscript  # noqa: F401 - torch.onnx needs it; missing, it is reported before any work is done
import torch  # noqa: F401

from byol.bundle.folder import require_place
from byol.bundle.manifest import Manifest
from byol.console import note, show_line
from byol.encoders import TIMM
from byol.encoders.pretrained import Pretrained, Three
from byol.export.additions import CALIBRATION, Additions
from byol.export.exporter import export_bundle
from byol.export.foreign.input import Input
from byol.export.foreign.toolkits import TOOLKITS, foreign_encoder
from byol.export.source import is_own, read_untrained
from byol.export.triton import require_repository, write_repository
from byol.limits import LARGEST_SIZE
from byol.options import LOCATION, FiniteRange, Output, of_option
from byol.outputs import require_not_within, require_output_folder
from byol.text import printable

OF_OTHERS = ("toolkit", "prefix", "arch", "image_size", "mean", "std")  # the options for weights of another toolkit


@click.command()
@click.argument("source", metavar="RUN|CHECKPOINT", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=Output(), required=True, help="Folder of the bundle.")
@click.option(
    "--untrained",
    is_flag=True,
    help="Export the same architecture with random weights, to compare with; takes a bundle, too.",
)
@click.option(
    "--from",
    "toolkit",
    type=click.Choice(TOOLKITS),
    help="The toolkit that wrote CHECKPOINT, if not byol; needs --arch. Beside --prefix: whose CIFAR stem it is.",
)
@click.option(
    "--prefix", help="What the encoder's tensors begin with in a foreign CHECKPOINT, where that is not known."
)
@click.option(
    "--arch",
    help="Encoder of a foreign CHECKPOINT: a torchvision ResNet, or timm:NAME or timm:NAME.TAG (--from timm: NAME).",
)
@click.option(
    "--image-size", type=click.IntRange(8, LARGEST_SIZE), help="Side of its input in pixels.  [default: timm's, or 224]"
)
@click.option(
    "--mean",
    type=FiniteRange(0, 1),
    nargs=3,
    help="Channel means of its input, scaled to 0..1.  [default: timm's, or ImageNet's]",
)
@click.option(
    "--std",
    type=FiniteRange(0, 1, min_open=True),
    nargs=3,
    help="Channel deviations of its input, scaled to 0..1.  [default: timm's, or ImageNet's]",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp16", "int8"]),
    multiple=True,
    help="Also write the encoder with fewer bits; repeatable.",
)
@click.option(
    "--calibrate",
    type=LOCATION,
    help=f"{CALIBRATION} typical images, to choose int8's ranges by; labels do not matter.",
)
@click.option("--any-size", is_flag=True, help="Also write an encoder that resizes and crops pictures itself.")
@click.option("--eval-train", type=LOCATION, help="Labelled images: the bank for the kNN accuracy of every variant.")
@click.option("--eval-test", type=LOCATION, help="Labelled images: the queries.")
@click.option(
    "--baselines", is_flag=True, help="Measure raw pixels and the untrained encoder beside it (with --eval-train)."
)
@click.option("--triton", type=Output(), help="Also write a model repository for Triton here.")
def export(source: Path, out: Path, triton: Path | None, **options: Any) -> None:
    """Write the online encoder of a run folder, or of one checkpoint file, as a verified bundle.

    Nothing is written unless ONNX Runtime reproduces torch's features, and every further graph those of the encoder.
    """
    untrained = options.pop("untrained")
    foreign = {name: value for name in OF_OTHERS if (value := options.pop(name)) is not None}
    if untrained and foreign:
        raise click.UsageError("--untrained draws new weights; leave out what describes another toolkit's")
    try:
        additions = Additions(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if foreign and is_own(source):
        raise click.UsageError(
            "--from, --prefix, --arch, --image-size, --mean and --std are for weights of another toolkit; leave them "
            f"out for {printable(source)}, which byol wrote: its bundle takes images as it was trained on them"
        )
    if foreign and "arch" not in foreign:
        raise click.UsageError("the architecture of another toolkit's weights is not known; add --arch NAME")
    _require_places(source, out, triton)
    manifest = export_bundle(_source(source, foreign, untrained), out, additions, note)
    models = write_repository(out, triton) if triton else []  # before the lines, which may find no reader
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    show_line(
        f"{printable(out)}: {manifest.architecture.name}, "
        f"{manifest.image_size} px to {manifest.feature_dim} features, {size:.0f} MB"
    )
    for name in manifest.graphs:
        show_line(f"verified: {_proof(manifest, name)}")
    if triton:
        show_line(f"{printable(triton)}: model repository with {', '.join(models)}")


def _require_places(source: Path, out: Path, triton: Path | None) -> None:
    """Raise for what cannot be written, or would replace its own source, before work that would be lost."""
    with of_option("--out"):
        require_not_within(out, [source])
        require_place(out)
    if triton:
        with of_option("--triton"):
            require_output_folder(triton, [source, out])
            if triton.resolve() == out.resolve():
                raise ValueError(f"{triton} is the bundle's folder; choose another")
            require_repository(triton)


def _source(path: Path, foreign: dict[str, Any], untrained: bool) -> Pretrained | Path:
    if untrained:
        return read_untrained(path)
    return _foreign_source(path, **foreign) if foreign else path


def _foreign_source(
    path: Path,
    arch: str,
    toolkit: str = "auto",
    prefix: str | None = None,
    image_size: int | None = None,
    mean: Three | None = None,
    std: Three | None = None,
) -> Pretrained:
    """The encoder of a foreign checkpoint; says on stderr what was taken and left, and what input it gets."""
    if toolkit == "timm" and not arch.startswith(TIMM):
        arch = TIMM + arch
    weights = foreign_encoder(path, toolkit, arch, image_size, prefix)
    note(f"{printable(path.name)} read as {weights.origin.toolkit}: {weights.arch}, {weights.stem} stem")
    for what, counts in (("took", weights.taken), ("left", weights.left)):
        note(f"{what}: {', '.join(f'{name} ({count})' for name, count in counts.items()) or 'nothing'}")
    given = replace(weights.input, mean=mean or weights.input.mean, std=std or weights.input.std)
    _say_input(given, mean is not None and std is not None)
    return Pretrained(
        weights.encoder,
        weights.arch,
        weights.stem,
        given.size,
        given.mean,
        given.std,
        resize=given.resize,
        origin=weights.origin,
    )


def _say_input(given: Input, by_hand: bool) -> None:
    numbers = [" ".join(f"{value:g}" for value in values) for values in (given.mean, given.std)]
    origin = "" if by_hand else f", {given.origin}; --image-size, --mean and --std override it"
    note(f"input: {given.size} px, the middle of {given.resize}; mean {numbers[0]}, std {numbers[1]}{origin}")
    if given.remark:
        note(f"input: {given.remark}")


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
