"""`byol linear`: linear-probe accuracy. Heavy imports wait until it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import show_json, show_line, warnings_as_notes
from byol.images.location import Location
from byol.options import LOCATION, FiniteRange, Output, OutputFile, of_option
from byol.serve.commands.comparison import add_baselines, baselines_option, note_better, show_measured
from byol.serve.commands.evaluation import common, fit, load, note_twins
from byol.serve.commands.options import BUNDLE, Positive, device_option, json_option

if TYPE_CHECKING:
    import numpy as np

    from byol.serve.evaluate.classifier import Classifier
    from byol.serve.evaluate.linear import LinearProbe
    from byol.serve.evaluate.sets import Evaluation


@click.command()
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--train", required=True, type=LOCATION, help="Images, or features that `extract` wrote.")
@click.option("--test", required=True, type=LOCATION, help="Images, or features.")
@click.option(
    "--l2",
    type=Positive(auto=True),
    default="auto",
    show_default=True,
    help="Strength of the penalty `l2 / 2 |W|^2`; auto chooses it on a part of --train that is held out.",
)
@click.option(
    "--save-classifier",
    "new_bundle",
    metavar="NEW_BUNDLE",
    type=Output(),
    help="Write BUNDLE with the fitted probe as classifier.onnx in it (may be BUNDLE itself).",
)
@click.option("--per-class", is_flag=True, help="Also show the accuracy of each class, and their mean.")
@click.option(
    "--confusion",
    type=OutputFile(),
    metavar="FILE.csv",
    help="Write how many images of each class (row) were predicted as which (column).",
)
@click.option(
    "--labels-per-class",
    "few_counts",
    type=click.IntRange(min=1),
    multiple=True,
    help="Also fit on this many labelled images per class; repeatable.",
)
@click.option(
    "--label-fraction",
    "few_shares",
    type=FiniteRange(0, 1, min_open=True),
    multiple=True,
    help="Also fit on this share of each class, such as 0.01; repeatable.",
)
@click.option(
    "--draws", type=click.IntRange(min=1), default=5, show_default=True, help="Random draws of the few labels."
)
@baselines_option
@device_option
@json_option
def linear(
    bundle: Path | None,
    train: Location,
    test: Location,
    l2: float | str,
    new_bundle: Path | None,
    per_class: bool,
    confusion: Path | None,
    few_counts: tuple[int, ...],
    few_shares: tuple[float, ...],
    draws: int,
    baselines: bool,
    device: str,
    as_json: bool,
) -> None:
    """Measure the linear-probe accuracy of BUNDLE's features.

    BUNDLE may be left out when --train and --test are features files. With --baselines, see what training was worth:
    the same probe on raw pixels and on the untrained encoder.
    """
    start = time.perf_counter()
    if new_bundle and bundle is None:
        raise click.UsageError("--save-classifier needs the BUNDLE whose encoder the probe belongs to")
    _require_places(new_bundle, confusion, [train, test, bundle])
    amounts = (*few_counts, *few_shares)
    data = load(bundle, train, test, device, amounts, baselines, "--save-classifier" if new_bundle else "")
    from byol.serve.evaluate.linear import LinearProbe
    from byol.text import printable

    where = data.encoder.device if data.encoder else device
    classifier = LinearProbe(l2, where)
    fit(classifier, data, device)
    note_twins(data)
    few = _Few(amounts, draws, lambda: LinearProbe(l2, classifier.device_))
    values = _row(classifier, data) | common(data, classifier.device_, start)
    rows = {
        name: _baseline(LinearProbe(l2, where), other, device, per_class) | few(other)
        for name, other in data.baselines.items()
    }
    add_baselines(values, rows, data)
    note_better(rows, values["top1"], len(data.test))
    try:
        if new_bundle and bundle:
            from byol.serve.fuse import save_classifier

            beside = {name: row["top1"] for name, row in rows.items()} or None
            save_classifier(bundle, classifier, data.head(classifier, values["top1"], beside), new_bundle)
            values["classifier"] = printable(new_bundle)
        if confusion:
            _write_confusion(confusion, classifier.classes_, classifier.confusion(data.test.x, data.y_test))
        if per_class:
            values |= _per_class(data.y_test, classifier.predict(data.test.x))
        values |= few(data)
    finally:  # what has been measured took minutes to hours: it is shown whatever fails
        values["seconds"] = round(time.perf_counter() - start, 3)
        _show_linear(values, as_json)


def _require_places(new_bundle: Path | None, confusion: Path | None, inputs: list[Location | None]) -> None:
    """Raise for what cannot be written, before work that would be lost."""
    from byol import outputs
    from byol.bundle.folder import require_place
    from byol.outputs import require_output

    if new_bundle:
        with of_option("--save-classifier"):
            require_place(new_bundle)  # which may be the bundle itself: it keeps all that it has
    if confusion:
        with of_option("--confusion"):
            require_output(confusion, outputs.CONFUSION, inputs)


def _show_linear(values: dict[str, Any], as_json: bool) -> None:
    from byol.bundle.measured import BASELINES

    if as_json:
        show_json(values)
        return
    classes, few = values.pop("per_class", {}), values.pop("few_labels", [])
    show_measured(values, as_json)
    for name, share in classes.items():
        show_line(f"  {name}: {share:.2%}")
    for number, row in enumerate(few):
        click.echo("{labels} ({images} labelled images): ".format(**row) + _spread(row))
        for name, other in values.get("baselines", {}).items():
            click.echo(f"  {BASELINES[name]}: {_spread(other['few_labels'][number])}")


def _spread(row: dict[str, Any]) -> str:
    return "{mean:.2%}".format(**row) + (
        " +- {deviation:.2%} over {draws} draws".format(**row) if row["draws"] > 1 else ""
    )


@dataclass(frozen=True)
class _Few:
    """Fits on `amounts` of labels, `draws` times each, by what `make` makes."""

    amounts: tuple[int | float, ...]
    draws: int
    make: Callable[[], Classifier]

    def __call__(self, data: Evaluation) -> dict[str, list[dict[str, object]]]:
        """`few_labels`, or nothing where no amount is given."""
        return {"few_labels": [self._row(data, amount) for amount in self.amounts]} if self.amounts else {}

    def _row(self, data: Evaluation, amount: int | float) -> dict[str, object]:
        from byol.images.splits import describe
        from byol.serve.evaluate.few_labels import few_label_accuracy

        train, test = (data.train.x, data.y_train), (data.test.x, data.y_test)
        with warnings_as_notes():
            few = few_label_accuracy(self.make, train, test, amount, self.draws)
        scores = {"mean": few.mean, "deviation": few.deviation, "top1": few.top1}
        return {"labels": describe(amount), "images": few.images, "draws": self.draws, **scores}


def _row(classifier: LinearProbe, data: Evaluation) -> dict[str, Any]:
    top1, top5 = classifier.top_k_scores(data.test.x, data.y_test)
    return {"top1": top1, "top5": top5, "l2": classifier.l2_}


def _baseline(classifier: LinearProbe, data: Evaluation, device: str, per_class: bool) -> dict[str, Any]:
    """Fit and score; of the accuracies of classes only the mean."""
    fit(classifier, data, device)
    found = _per_class(data.y_test, classifier.predict(data.test.x)) if per_class else {}
    return _row(classifier, data) | {name: share for name, share in found.items() if name == "mean_per_class"}


def _per_class(truth: np.ndarray, predicted: np.ndarray) -> dict[str, object]:
    from byol.serve.evaluate.scores import accuracy_per_class

    classes, shares = accuracy_per_class(truth, predicted == truth)
    per_class = dict(zip(map(str, classes), shares.tolist(), strict=True))
    return {"mean_per_class": float(shares.mean()), "per_class": per_class}


def _write_confusion(path: Path, classes: np.ndarray, counts: np.ndarray) -> None:
    import csv

    from byol.files.atomic import atomic_file
    from byol.text import cell

    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        names = [cell(str(name)) for name in classes]
        writer.writerow(["class", *names])
        writer.writerows([name, *row.tolist()] for name, row in zip(names, counts, strict=True))
