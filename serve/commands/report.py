"""`byol report`: runs and bundles as one HTML page. Heavy imports wait until the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import bokeh  # noqa: F401 - the `report` extra; byol.cli reports its absence
import click

from byol.console import note, note_device, progress, show_table, warnings_as_notes
from byol.files.atomic import atomic_file
from byol.files.places import behind_links
from byol.images.location import Location, same_place
from byol.options import LOCATION, Output, of_option
from byol.outputs import require_output
from byol.serve.commands.comparison import baselines_option, compare, require_images
from byol.serve.commands.evaluation import note_left_out, note_nameless
from byol.serve.commands.options import device_option
from byol.text import printable

if TYPE_CHECKING:
    from byol.serve.evaluate.sets import Evaluation, Sets
    from byol.serve.report.runs import Entry
    from byol.serve.report.sections import Report


@click.command()
@click.argument(
    "paths",
    metavar="RUN|BUNDLE...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    nargs=-1,
    required=True,
)
@click.option("--train", type=LOCATION, help="Labelled images to learn from; without labels, only neighbours and map.")
@click.option("--test", type=LOCATION, help="Images to measure and show.")
@click.option("--out", type=Output(dir_okay=False), required=True, metavar="FILE.html", help="The page.")
@baselines_option
@device_option
def report(
    paths: tuple[Path, ...],
    train: Location | None,
    test: Location | None,
    out: Path,
    baselines: bool,
    device: str,
) -> None:
    """Write runs and bundles as one self-contained page: curves, accuracies, neighbours, a map, provenance.

    A run and the bundle exported from it are shown as one; several encoders are compared.
    Accuracies, neighbours and the map need a bundle, --train and --test.
    """
    from byol import outputs
    from byol.serve.report.page import render
    from byol.serve.report.runs import open_entries
    from byol.serve.report.sections import Report

    if (train is None) != (test is None):
        raise click.UsageError("give both --train and --test, or neither")
    if baselines and not (train and test):
        raise click.UsageError("--baselines needs images to measure on; add --train and --test")
    if baselines and train and test:
        require_images(paths[0], train, test)
    with of_option("--out"):
        require_output(out, outputs.PAGE, [train, test, *paths])
    entries = open_entries(paths)
    for entry in entries:
        if entry.run and entry.run.metrics.cut_off:
            note(f"{entry.name}: ignored the half-written last line of its metrics")
        if entry.run and entry.run.metrics.ignored:
            note(f"{entry.name}: {entry.run.metrics.ignored}")
    filled = _evaluated(entries, (train, test), device, baselines) if train and test else Report(entries)
    page = render(filled)
    behind_links(out).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    show_table([("page", printable(out)), ("size", f"{len(page.encode()) / 1e6:.1f} MB")])


def _evaluated(entries: list[Entry], sets: tuple[Location, Location], device: str, baselines: bool) -> Report:
    """Every bundle on the images of train and test; the first one is also explored, and compared with `baselines`."""
    from byol.serve.evaluate.sets import load_either, open_either
    from byol.serve.report.accuracies import baselines_table
    from byol.serve.report.explore import explore
    from byol.serve.report.measure import measure, measure_baselines
    from byol.serve.report.sections import Report

    bundles = {entry.name: entry.bundle.folder for entry in entries if entry.bundle}
    if not bundles:
        raise click.UsageError(
            "accuracies need an exported encoder, and no bundle is given: byol export RUN --out BUNDLE, then "
            "byol report RUN BUNDLE --train SRC --test SRC"
        )
    for entry in entries:
        if entry.bundle is None:
            note(f"{entry.name}: no accuracies, as its bundle is not given (byol export RUN --out BUNDLE)")
    same = same_place(*sets)
    if same:
        note(
            "warning: --train and --test are the same images: kNN and neighbours leave each one out, but the linear "
            "probe is scored on the images that it learned from"
        )
    opened = open_either(sets[0], None if same else sets[1])
    _require_comparable(opened, next(iter(bundles.values())), len(bundles))
    first, exploration, scores = next(iter(bundles)), None, {}
    table: dict[str, Any] = {}
    for name, bundle in bundles.items():
        compared = compare(bundle, device) if baselines and name == first else None
        data = load_either(bundle, opened, device, progress, compared)
        data = compared.split(data) if compared else data
        used = data.encoder.device if data.encoder else device
        if name == first:
            _tell(data, device)
            exploration = explore(data, used)
        if not data.labelled:
            break
        note(f"{name}: accuracies on {len(data.test)} test images")
        with warnings_as_notes():
            scores[name] = measure(data, used)
            if compared:
                table = baselines_table({name: scores[name].row, **measure_baselines(data, used)})
    return Report(entries, scores, exploration, first, table)


def _require_comparable(sets: Sets, bundle: Path, count: int) -> None:
    """Raise `UsageError` for features where several encoders are to be measured; warn of those that name none."""
    from byol.serve.features.read import Features

    features = next((opened for opened in sets if isinstance(opened, Features)), None)
    if features and count > 1:
        raise click.UsageError(
            f"{features.name} holds the features of one encoder, but {count} bundles are compared; give the images as "
            "--train and --test"
        )
    note_nameless(bundle, sets)


def _tell(data: Evaluation, device: str) -> None:
    """The device, the skipped images, and whether labels are missing."""
    if data.encoder:
        note_device(device, data.encoder.device, data.encoder.reason)
    note_left_out(data)
    if not data.labelled:
        note("one of --train and --test has no labels: only neighbours and a map of the first bundle, no accuracies")
