"""`byol transfer`: one encoder, several labelled data sets. Heavy imports wait until it runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note, note_device, progress, show_json, show_line, warnings_as_notes
from byol.images.location import Location, location_of
from byol.options import note_same
from byol.run import KNN_K, KNN_TEMPERATURE
from byol.serve.commands.comparison import baselines_option, compare, note_better, require_images
from byol.serve.commands.evaluation import note_left_out, note_nameless, note_twins
from byol.serve.commands.options import BUNDLE, Positive, device_option, json_option
from byol.text import as_message, printable

if TYPE_CHECKING:
    from byol.serve.evaluate.classifier import Classifier
    from byol.serve.evaluate.sets import Evaluation

TEST_FOLDERS = ("test", "val")
KINDS = {"linear": "linear", "knn": "kNN"}
COLUMNS = ("top1", "mean_per_class")
LONGEST_ROW = len("  untrained encoder")


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("--k", type=click.IntRange(min=1), default=KNN_K, show_default=True, help="Neighbours that vote.")
@click.option(
    "--temperature",
    type=Positive(),
    default=KNN_TEMPERATURE,
    show_default=True,
    help="Temperature of the votes.",
)
@baselines_option
@device_option
@json_option
def transfer(
    bundle: Path, data: tuple[str, ...], k: int, temperature: float, baselines: bool, device: str, as_json: bool
) -> None:
    """Measure linear-probe and kNN accuracy of BUNDLE on several data sets.

    Each DATA is a folder with train/ and test/ (or val/), a named data set such as cifar10, or NAME=TRAIN,TEST
    with any two sources. The probe chooses its L2 strength as in `byol linear`. A data set that fails does not stop the
    others. With --baselines, see what training was worth: two more rows for each data set.
    """
    start = time.perf_counter()
    from byol.bundle.folder import Bundle
    from byol.serve.evaluate.sets import load_opened, open_labelled

    locations: dict[str, tuple[Location, Location]] = {}
    for text in data:
        name, train, test = data_set(text)
        if name in locations:
            raise click.UsageError(f"two data sets are called {name!r}; rename one: NAME=TRAIN,TEST")
        note_same(train, test)
        locations[name] = train, test
    if baselines:
        require_images(bundle, *(location for pair in locations.values() for location in pair))
    opened = {name: open_labelled(*pair) for name, pair in locations.items()}  # all, before any work
    for sets in opened.values():
        note_nameless(bundle, sets)
    Bundle.open(bundle)
    compared = compare(bundle, device) if baselines else None
    width = max(len("data set"), *(len(as_message(name)) for name in locations), LONGEST_ROW if baselines else 0)
    if not as_json:
        click.echo(head(width, baselines))
    results, failed = list[dict[str, Any]](), dict[str, str]()
    for number, name in enumerate(locations):
        try:
            loaded = load_opened(bundle, opened.pop(name), device, progress, encoder=compared)
            loaded = compared.split(loaded) if compared else loaded
            if loaded.encoder and number == 0:
                note_device(device, loaded.encoder.device, loaded.encoder.reason)
            note_left_out(loaded, f"{name} (train)", f"{name} (test)")
            results.append({"name": name, **evaluate(loaded, k, temperature, device)})
            _note_better(results[-1])
            note_twins(loaded, name)
        except (ValueError, OSError) as error:
            failed[name] = as_message(error)
            note(f"{name}: {error}")
            continue
        if not as_json:
            show_line(row(results[-1], width))
            for line in baseline_rows(results[-1], width):
                show_line(line)
    if as_json:
        show_json({"results": results, "failed": failed, "seconds": round(time.perf_counter() - start, 3)})
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(locations)} data sets failed: {', '.join(failed)}")


def data_set(text: str) -> tuple[str, Location, Location]:
    """Name, train and test of a DATA argument. Raises `click.UsageError` when it is none of the three kinds."""
    from byol.images.named import SPLITS

    name, equals, pair = text.partition("=")
    if equals:
        train, comma, test = pair.partition(",")
        if not (name and train and comma and test):
            raise click.UsageError(f"{text!r} is not NAME=TRAIN,TEST")
        return name, location_of(train), location_of(test)
    folder = Path(text)
    tests = [folder / part for part in TEST_FOLDERS if (folder / part).is_dir()]
    if (folder / "train").is_dir() and tests:
        return folder.resolve().name, folder / "train", tests[0]
    if text in SPLITS and not folder.exists():
        return text, Path(f"{text}:train"), Path(f"{text}:test")
    raise click.UsageError(
        f"{printable(text)} is neither a folder with train/ and {'/ or '.join(TEST_FOLDERS)}/, nor a named data "
        f"set ({', '.join(SPLITS)}); give NAME=TRAIN,TEST"
    )


def evaluate(data: Evaluation, k: int, temperature: float, device: str) -> dict[str, Any]:
    """Accuracies (0 to 1) of probe and kNN on one data set, also of the baselines where there are some."""
    device = data.encoder.device if data.encoder else device
    result: dict[str, Any] = {
        "n_train": len(data.train),
        "n_test": len(data.test),
        "classes": len(set(data.train.labels)),
        **_accuracies(data, k, temperature, device),
    }
    if data.baselines:
        others = data.baselines.items()
        result["baselines"] = {name: _accuracies(other, k, temperature, device) for name, other in others}
    return result


def _accuracies(data: Evaluation, k: int, temperature: float, device: str) -> dict[str, Any]:
    from byol.serve.evaluate.knn import KNNClassifier
    from byol.serve.evaluate.linear import LinearProbe

    probe, neighbours = LinearProbe(device=device), KNNClassifier(k, temperature, device)
    linear, knn = measure(probe, data), measure(neighbours, data)
    return {"linear": {**linear, "l2": probe.l2_}, "knn": {**knn, "k": neighbours.k_, "temperature": temperature}}


def _note_better(result: dict[str, Any]) -> None:
    for kind, title in KINDS.items():
        rows = {name: other[kind] for name, other in result.get("baselines", {}).items()}
        note_better(rows, result[kind]["top1"], result["n_test"], f"{title} top-1 on {result['name']}")


def measure(classifier: Classifier, data: Evaluation) -> dict[str, float]:
    """Fit on train, measure on test."""
    with warnings_as_notes():
        return classifier.fit(data.train.x, data.y_train).measure(data.test.x, data.y_test)


def head(width: int, baselines: bool = False) -> str:
    """The column titles of `row`; `width` is that of the names."""
    titles = ["train", "test", "classes", "linear", "per class", "kNN", "per class"]
    titles += ["linear +-", "kNN +-"] if baselines else []
    return f"{'data set':<{width}}" + "".join(f"{title:>11}" for title in titles)


def row(result: dict[str, Any], width: int) -> str:
    """One data set, accuracies in percent."""
    counts = [f"{result[key]:,}" for key in ("n_train", "n_test", "classes")]
    return f"{as_message(result['name']):<{width}}" + "".join(f"{cell:>11}" for cell in (*counts, *_shares(result)))


def baseline_rows(result: dict[str, Any], width: int) -> list[str]:
    """The same for the baselines of a data set; at the end, how far each is from the encoder in top-1, in points."""
    from byol.bundle.measured import BASELINES

    lines = []
    for name, other in result.get("baselines", {}).items():
        points = [f"{100 * (other[kind]['top1'] - result[kind]['top1']):+.2f}" for kind in KINDS]
        cells = ("", "", "", *_shares(other), *points)
        lines.append(f"{'  ' + BASELINES[name]:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    return lines


def _shares(result: dict[str, Any]) -> list[str]:
    return [f"{100 * result[kind][key]:.2f}" for kind in KINDS for key in COLUMNS]
