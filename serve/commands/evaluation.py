"""What the evaluating commands share: two sets, the fit, common results. Heavy imports wait until a command runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note, note_device, note_several, note_skipped, progress, warnings_as_notes
from byol.images.location import Location
from byol.options import note_same
from byol.serve.commands.comparison import compare, require_images
from byol.text import printable

if TYPE_CHECKING:
    from byol.serve.evaluate.classifier import Classifier
    from byol.serve.evaluate.sets import Evaluation, Sets

NAMELESS = "warning: {} does not say which encoder computed it; features of two encoders cannot be compared"


def load(
    bundle: Path | None,
    train: Location,
    test: Location | None,
    device: str,
    amounts: Sequence[int | float] = (),
    baselines: bool = False,
    claim: str = "",
) -> Evaluation:
    """Both sets, after checking that the `amounts` of labels to draw exist, before the first image is encoded.

    Without `test`, the train set is both. `claim`: an option that states what is measured as BUNDLE's, in a bundle that
    must be able to name the classes.
    """
    import numpy as np

    from byol.images.labels import require_nameable
    from byol.images.open import open_source
    from byol.images.splits import draw
    from byol.serve.evaluate.sets import load_opened, needs_bundle, open_labelled

    note_same(train, test)
    given = (train,) if test is None else (train, test)
    if baselines:
        require_images(bundle, *given)
    images = needs_bundle(*given)
    if bundle is None and images is not None:
        open_source(images)  # which says so where there is nothing
        option = "--train" if images == train else "--test"
        raise click.UsageError(
            f"{option} {printable(images)} is not a features file; name the bundle that encodes its images: "
            f"byol {click.get_current_context().info_name} BUNDLE --train SRC --test SRC"
        )
    sets = open_labelled(train, test)
    note_nameless(bundle, sets, claim)
    if claim:
        require_nameable(sets[0])
    for amount in amounts:
        draw(np.array(sets[0].labels[:]), amount, seed=0)  # which says where a class has too few
    compared = compare(bundle, device) if bundle and baselines else None
    data = load_opened(bundle, sets, device, progress, encoder=compared)
    for amount in amounts:
        draw(data.y_train, amount, seed=0)  # of the images that can be read
    if data.encoder:
        note_device(device, data.encoder.device, data.encoder.reason)
    note_left_out(data)
    return compared.split(data) if compared else data


def note_nameless(bundle: Path | None, sets: Sets, claim: str = "") -> None:
    """Warn of features that do not say whose they are, beside others that do. Raises `UsageError` for a `claim`."""
    from byol.serve.evaluate.sets import nameless

    names = nameless(sets)
    if names and claim:
        raise click.UsageError(
            f"{claim} states the accuracy of BUNDLE's encoder, but {names[0]} does not say which encoder computed it; "
            "give the images, or a .parquet or .npz file that `byol extract` wrote"
        )
    if bundle is None and len(names) == len({opened.name for opened in sets}):
        return
    for name in names:
        note(NAMELESS.format(name))


def note_left_out(data: Evaluation, train: str = "--train", test: str = "--test") -> None:
    """List the images that could not be read, each set under its name, and count those that were read in part."""
    for skipped, name in zip(data.skipped, (train, test), strict=True):
        note_skipped(skipped, of=name)
    note_several(data.several, len(data.train) + (0 if data.one_set else len(data.test)))


def note_twins(data: Evaluation, of: str = "") -> None:
    """Warn where more than a few test images have a near-duplicate in training; `of` names the data set."""
    from byol.serve.duplicates.twins import twins_in_training
    from byol.serve.limits import THRESHOLD

    if data.one_set:
        return
    twins = twins_in_training(data.train.x, data.test.x)
    if twins.many:
        some = "" if twins.looked == len(data.test) else " that were looked at"
        note(
            f"warning: {of and f'{of}: '}{twins.having:,} of {twins.looked:,} test images{some} have a near-duplicate "
            f"in training (cosine {THRESHOLD} or more); `byol duplicates` with --against lists them"
        )


def fit(classifier: Classifier, data: Evaluation, device: str) -> None:
    """Fit on the training features and note the device, unless encoding has noted it."""
    with warnings_as_notes():
        classifier.fit(data.train.x, data.y_train)
    if data.encoder is None:
        note_device(device, classifier.device_, classifier.reason_)


def common(data: Evaluation, device: str, start: float) -> dict[str, Any]:
    """What both report besides accuracies; `device` of the fit counts where nothing was encoded, `start` is when the
    command began (`time.perf_counter`).
    """
    return {
        "n_train": len(data.train),
        "n_test": len(data.test),
        "device": data.encoder.device if data.encoder else device,
        "seconds": round(time.perf_counter() - start, 3),
    }
