"""`byol knn`: weighted k-nearest-neighbour accuracy. Heavy imports wait until it runs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from byol.console import show_json
from byol.images.location import Location
from byol.options import LOCATION
from byol.run import KNN_K, KNN_TEMPERATURE
from byol.serve.commands.evaluation import common, fit, load
from byol.serve.commands.options import BUNDLE, Positive, device_option, json_option, show


@click.command()
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--train", required=True, type=LOCATION, help="The bank: images, or features written by `extract`.")
@click.option("--test", required=True, type=LOCATION, help="The queries: images, or features.")
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
@device_option
@json_option
def knn(
    bundle: Path | None,
    train: Location,
    test: Location,
    ks: tuple[int, ...],
    temperatures: tuple[float, ...],
    device: str,
    as_json: bool,
) -> None:
    """Measure the weighted k-nearest-neighbour accuracy of BUNDLE's features.

    BUNDLE may be left out when --train and --test are features files. One search serves every --k and --temperature.
    """
    start = time.perf_counter()
    data = load(bundle, train, test, device)
    from byol.serve.evaluate.knn import KNNClassifier

    classifier = KNNClassifier(max(ks), temperatures[0], data.encoder.device if data.encoder else device)
    fit(classifier, data, device)
    names = ("k", "temperature", "top1", "top5")
    swept = classifier.sweep(data.test.x, data.y_test, ks, temperatures)
    results = [dict(zip(names, result, strict=True)) for result in swept]
    values = {name: results[0][name] for name in ("top1", "top5", "k", "temperature")}
    values |= common(data, classifier.device_, start)
    if len(results) == 1:
        show(values, as_json)
    elif as_json:
        show_json(values | {"results": results})
    else:
        for result in results:
            click.echo("k {k:<4} temperature {temperature:<6g} top-1 {top1:.2%}  top-5 {top5:.2%}".format(**result))
