"""`byol knn`: weighted k-nearest-neighbour accuracy. Heavy imports wait until it runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note, show_json
from byol.images.location import Location, same_place
from byol.options import LOCATION
from byol.run import KNN_K, KNN_TEMPERATURE, standard_error
from byol.serve.commands.comparison import add_baselines, baselines_option, note_better, show_measured
from byol.serve.commands.evaluation import common, fit, load, note_twins
from byol.serve.commands.options import BUNDLE, Positive, device_option, json_option

if TYPE_CHECKING:
    from byol.serve.evaluate.knn import KNNClassifier
    from byol.serve.evaluate.sets import Evaluation


@click.command()
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--train", required=True, type=LOCATION, help="The bank: images, or features written by `extract`.")
@click.option(
    "--test",
    type=LOCATION,
    help="The queries: images, or features. Unset: those of --train, each compared with all the others.",
)
@click.option(
    "--k",
    "ks",
    type=click.IntRange(min=1),
    default=(KNN_K,),
    show_default=True,
    multiple=True,
    help="Neighbours that vote; repeatable.",
)
@click.option(
    "--temperature",
    "temperatures",
    type=Positive(),
    default=(KNN_TEMPERATURE,),
    show_default=True,
    multiple=True,
    help="A neighbour of cosine similarity s votes with weight exp(s / temperature); repeatable.",
)
@baselines_option
@device_option
@json_option
def knn(
    bundle: Path | None,
    train: Location,
    test: Location | None,
    ks: tuple[int, ...],
    temperatures: tuple[float, ...],
    baselines: bool,
    device: str,
    as_json: bool,
) -> None:
    """Measure the weighted k-nearest-neighbour accuracy of BUNDLE's features.

    BUNDLE may be left out when --train and --test are features files. One search serves every --k and --temperature.
    With --baselines, see what training was worth: the same kNN on raw pixels and on the untrained encoder.
    """
    start = time.perf_counter()
    if test is not None and same_place(train, test):
        test = None  # else each query would be its own nearest neighbour
    data = load(bundle, train, test, device, baselines=baselines)
    from byol.serve.evaluate.knn import KNNClassifier

    k = max(ks)
    if data.one_set:
        note(f"leave one out: each of the {len(data.train):,} images is compared with all the others")
        k = min(k, len(data.train) - 1) + 1  # its own place among its neighbours is left out
    classifier = KNNClassifier(k, temperatures[0], data.encoder.device if data.encoder else device)
    fit(classifier, data, device)
    results = _swept(classifier, data, ks, temperatures)
    note_twins(data)
    values: dict[str, Any] = {name: results[0][name] for name in ("top1", "top5", "k", "temperature")}
    values |= common(data, classifier.device_, start)
    others = {}
    for name, other in data.baselines.items():
        fit(classifier, other, device)
        others[name] = _swept(classifier, other, ks, temperatures)
    rows = {name: {"top1": swept[0]["top1"], "top5": swept[0]["top5"]} for name, swept in others.items()}
    add_baselines(values, rows, data)
    for number, result in enumerate(results):
        of = "" if len(results) == 1 else " at k {k}, temperature {temperature:g}".format(**result)
        beside = {name: swept[number] for name, swept in others.items()}
        note_better(beside, result["top1"], len(data.test), f"top-1{of}")
    values["seconds"] = round(time.perf_counter() - start, 3)
    if len(results) == 1:
        show_measured(values, as_json)
    elif as_json:
        for name, swept in others.items():
            rows[name]["results"] = swept
        show_json(values | {"results": results})
    else:
        note(f"{values['n_test']:,} test images, bank of {values['n_train']:,}")
        _show_swept(results, others, values)


def _show_swept(results: list[dict[str, Any]], others: dict[str, list[dict[str, Any]]], values: dict[str, Any]) -> None:
    """A line for each k and temperature, with the baselines' top-1 and how far it is from the encoder's, in points."""
    for number, result in enumerate(results):
        line = "k {k:<4} temperature {temperature:<6g} top-1 {top1:.2%}  top-5 {top5:.2%}".format(**result)
        for name, top1 in ((name, swept[number]["top1"]) for name, swept in others.items()):
            line += f"  {name} {top1:.2%} ({100 * (top1 - result['top1']):+.2f})"
        click.echo(line)
    if others:
        click.echo(f"chance {values['chance']:.2%}")
        error = max(standard_error(result["top1"], values["n_test"]) for result in results)
        click.echo(f"standard error of the encoder's top-1: at most {100 * error:.2f} points")


def _swept(
    classifier: KNNClassifier, data: Evaluation, ks: tuple[int, ...], temperatures: tuple[float, ...]
) -> list[dict[str, Any]]:
    swept = classifier.sweep(data.test.x, data.y_test, ks, temperatures, leave_one_out=data.one_set)
    return [dict(zip(("k", "temperature", "top1", "top5"), result, strict=True)) for result in swept]
