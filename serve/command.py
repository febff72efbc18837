"""The commands `extract`, `classify`, `knn`, `linear` and `info`. Heavy imports wait until a command runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note, note_device, note_skipped, progress, show_json, show_table, warnings_as_notes
from byol.serve import DEVICES, MAX_BATCH_SIZE, VARIANT_NAMES

if TYPE_CHECKING:
    from byol.serve.classifier import Classifier
    from byol.serve.evaluate import Evaluation

_EXISTING = click.Path(exists=True, path_type=Path)
_bundle = click.Path(exists=True, file_okay=False, path_type=Path)

device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="cuda fails where CUDA does not run; auto then takes the CPU and says why.",
)
batch_option = click.option(
    "--batch-size", type=click.IntRange(1, MAX_BATCH_SIZE), help="Images per run [default: what suits the device]."
)
on_error_option = click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="What to do with an image that cannot be read: leave it out and list it, or stop.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")


class _Positive(click.ParamType[float | str]):
    """A finite number above 0 (click's own range lets nan pass), or the word `auto` where that is allowed."""

    def __init__(self, auto: bool = False) -> None:
        self.auto = auto
        self.name = "auto|FLOAT" if auto else "FLOAT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if self.auto and value == "auto":
            return "auto"
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            self.fail(f"{value!r} is not a positive number{' or auto' if self.auto else ''}", param, ctx)
        return number


@click.command()
@click.argument("bundle", type=_bundle)
@click.argument("images", type=_EXISTING)
@click.option("--out", required=True, help="FILE.parquet, FILE.npz, or a folder.")
@device_option
@batch_option
@on_error_option
@click.option(
    "--variant",
    type=click.Choice(VARIANT_NAMES),
    default="fp32",
    show_default=True,
    help="Which of the bundle's encoders; auto: the fastest on the device.",
)
@json_option
def extract(
    bundle: Path,
    images: Path,
    out: str,
    device: str,
    batch_size: int | None,
    on_error: str,
    variant: str,
    as_json: bool,
) -> None:
    """Compute the features of IMAGES (a folder, an image or an .npz) with BUNDLE."""
    from byol.images import printable
    from byol.serve import extract as extraction
    from byol.serve.encoder import Encoder
    from byol.sources import open_source

    try:
        files = extraction.output_files(out)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--out") from error
    source = open_source(images)
    encoder = Encoder(bundle, device, batch_size, variant)
    note_device(device, encoder.device, encoder.reason)
    if variant == "auto":
        note(f"variant: {encoder.variant}")
    with progress("extract", len(source)) as advance:
        result = extraction.extract(encoder, source, files, on_error == "fail", advance)
    note_skipped(result.skipped, listed_in=printable(files[1]))
    values: dict[str, Any] = {
        "images": result.images,
        "skipped": len(result.skipped),
        "dim": encoder.feature_dim,
        "images_per_second": round(result.images / result.seconds, 3),
        "device": encoder.device,
        "out": printable(out),
        "variant": encoder.variant,
    }
    _show(values, as_json)


@click.command()
@click.argument("bundle", type=_bundle)
@click.argument("images", type=_EXISTING)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="FILE.parquet or FILE.csv.")
@device_option
@batch_option
@on_error_option
@json_option
def classify(
    bundle: Path, images: Path, out: Path, device: str, batch_size: int | None, on_error: str, as_json: bool
) -> None:
    """Classify IMAGES with the linear probe in BUNDLE (see `byol linear --save-classifier`)."""
    from byol.images import printable
    from byol.serve import classify as classification
    from byol.sources import open_source

    if out.suffix.lower() not in (".parquet", ".csv"):
        raise click.BadParameter(f"{out.suffix!r} is not known: end in .parquet or .csv", param_hint="--out")
    errors = out.with_name(f"{out.stem}.errors.parquet")
    source = open_source(images)
    classifier = classification.ImageClassifier(bundle, device, batch_size)
    note_device(device, classifier.device, classifier.reason)
    with progress("classify", len(source)) as advance:
        result = classification.classify(classifier, source, out, errors, on_error == "fail", advance)
    note_skipped(result.skipped, listed_in=printable(errors))
    values: dict[str, Any] = {
        "images": result.images,
        "skipped": len(result.skipped),
        "classes": len(classifier.classes),
        "images_per_second": round(result.images / result.seconds, 3),
        "device": classifier.device,
        "out": printable(out),
    }
    _show(values, as_json)


@click.command()
@click.argument("bundle", type=_bundle, required=False)
@click.option("--train", required=True, type=_EXISTING, help="The bank: images, or features that `extract` wrote.")
@click.option("--test", required=True, type=_EXISTING, help="The queries: images, or features.")
@click.option("--k", type=click.IntRange(min=1), default=20, show_default=True, help="Neighbours that vote.")
@click.option(
    "--temperature",
    type=_Positive(),
    default=0.07,
    show_default=True,
    help="A neighbour of cosine similarity s votes with weight exp(s / temperature).",
)
@device_option
@json_option
def knn(bundle: Path | None, train: Path, test: Path, k: int, temperature: float, device: str, as_json: bool) -> None:
    """Weighted k-nearest-neighbour accuracy of BUNDLE's features.

    BUNDLE may be left out when --train and --test are features files.
    """
    start = time.perf_counter()
    data = _load(bundle, train, test, device)
    from byol.serve.knn import KNNClassifier

    classifier = KNNClassifier(k, temperature, data.encoder.device if data.encoder else device)
    top1, top5 = _score(classifier, data, device)
    values = {"top1": top1, "top5": top5, "k": classifier.k_, "temperature": temperature}
    _show(values | _common(data, classifier.device_, start), as_json)


@click.command()
@click.argument("bundle", type=_bundle, required=False)
@click.option("--train", required=True, type=_EXISTING, help="Images, or features that `extract` wrote.")
@click.option("--test", required=True, type=_EXISTING, help="Images, or features.")
@click.option(
    "--l2",
    type=_Positive(auto=True),
    default="auto",
    show_default=True,
    help="Strength of the penalty l2 / 2 |W|^2; auto chooses it on a hold-out of --train.",
)
@click.option(
    "--save-classifier",
    "new_bundle",
    metavar="NEW_BUNDLE",
    type=click.Path(path_type=Path),
    help="Write BUNDLE with the fitted probe as classifier.onnx in it (may be BUNDLE itself).",
)
@device_option
@json_option
def linear(
    bundle: Path | None,
    train: Path,
    test: Path,
    l2: float | str,
    new_bundle: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Linear-probe accuracy of BUNDLE's features.

    BUNDLE may be left out when --train and --test are features files.
    """
    start = time.perf_counter()
    if new_bundle and bundle is None:
        raise click.UsageError("--save-classifier needs the BUNDLE whose encoder the probe belongs to")
    data = _load(bundle, train, test, device)
    from byol.images import printable
    from byol.serve.linear import LinearProbe

    classifier = LinearProbe(l2, data.encoder.device if data.encoder else device)
    top1, top5 = _score(classifier, data, device)
    values = {"top1": top1, "top5": top5, "l2": classifier.l2_} | _common(data, classifier.device_, start)
    if new_bundle and bundle:
        from byol.serve.fuse import save_classifier

        save_classifier(bundle, classifier, data.head(classifier, top1), new_bundle)
        values["classifier"] = printable(new_bundle)
    _show(values, as_json)


def _load(bundle: Path | None, train: Path, test: Path, device: str) -> Evaluation:
    from byol.images import printable
    from byol.serve.evaluate import load_evaluation, needs_bundle

    images = needs_bundle(train, test)
    if bundle is None and images is not None:
        option = "--train" if images == train else "--test"
        raise click.UsageError(
            f"{option} {printable(images)} is not a features file, so the bundle that encodes its images is needed: "
            f"byol {click.get_current_context().info_name} BUNDLE --train SRC --test SRC"
        )
    data = load_evaluation(bundle, train, test, device, progress)
    if data.encoder:
        note_device(device, data.encoder.device, data.encoder.reason)
    note_skipped(data.skipped)
    return data


def _score(classifier: Classifier, data: Evaluation, device: str) -> list[float]:
    """Top-1 and top-5."""
    with warnings_as_notes():
        classifier.fit(data.train.x, data.y_train)
    if data.encoder is None:
        note_device(device, classifier.device_, classifier.reason_)
    return classifier.top_k_scores(data.test.x, data.y_test)


def _common(data: Evaluation, device: str, start: float) -> dict[str, Any]:
    return {
        "n_train": len(data.train),
        "n_test": len(data.test),
        "device": device,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(values)
        return
    percent = {"top1", "top5"}
    show_table([(key, f"{value:.2%}" if key in percent else value) for key, value in values.items()])


@click.command()
@click.argument("bundle", type=_bundle)
@click.option("--verify", is_flag=True, help="Check every hash and run the golden inputs.")
@json_option
def info(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show what BUNDLE holds; with --verify, check it against itself."""
    from byol.serve.info import info_json, info_rows, verify_rows

    opened, values = info_json(bundle, verify)
    if as_json:
        show_json(values)
    else:
        show_table(info_rows(opened) + (verify_rows(values["verify"]) if verify else []))
    if verify and not values["verify"]["ok"]:
        raise ValueError("; ".join(values["verify"]["problems"]))
