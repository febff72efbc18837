"""What `--baselines` adds to the evaluating commands: raw pixels and the untrained encoder beside the one measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note
from byol.images.location import Location
from byol.run import standard_error
from byol.serve.commands.options import show

if TYPE_CHECKING:
    from byol.serve.evaluate.baselines import Compared
    from byol.serve.evaluate.sets import Evaluation

baselines_option = click.option(
    "--baselines",
    is_flag=True,
    help="Measure raw pixels and the untrained encoder (needs the `train` extra) beside it, on the same images.",
)
ADDED = ("baselines", "chance", "standard_error")  # to the results


def require_images(bundle: Path | None, *locations: Location) -> None:
    """Raise `UsageError` unless `--baselines` has what it needs: a bundle, and images for it."""
    from byol.serve.features.read import is_features
    from byol.text import printable

    features = next((location for location in locations if is_features(location)), None)
    if bundle is None or features is not None:
        found = f"{printable(features)} holds features" if features is not None else "there is no BUNDLE"
        raise click.UsageError(f"--baselines needs a BUNDLE and the images themselves, not their features; {found}")


def compare(bundle: Path, device: str) -> Compared:
    """The encoder and what it is measured beside; says where the untrained one is missing."""
    from byol.serve.evaluate.baselines import open_compared

    note("exporting the untrained encoder, to measure it beside this one")
    compared, lacks = open_compared(bundle, device)
    if lacks:
        note(f"the untrained encoder is left out: {lacks}")
    return compared


def add_baselines(values: dict[str, Any], rows: dict[str, Any], data: Evaluation) -> None:
    """Put the baselines' `rows` into the results, with chance and the standard error of top-1 (0 to 1)."""
    if not rows:
        return
    from byol.serve.evaluate.baselines import chance

    added = rows, chance(data), standard_error(values["top1"], len(data.test))
    values.update(zip(ADDED, added, strict=True))


def note_better(rows: dict[str, Any], encoders: float, n_test: int, measured: str = "top-1") -> None:
    """One line for each baseline whose top-1 (0 to 1) is above the encoder's; says so where two standard errors are
    more than its lead.
    """
    for name, top1 in ((name, row["top1"]) for name, row in rows.items()):
        if top1 > encoders:
            what = {"pixels": "raw pixels score", "untrained": "the untrained encoder scores"}[name]
            sure = top1 - encoders > 2 * standard_error(encoders, n_test)
            doubt = "" if sure else f" (with {n_test:,} test images this may be chance)"
            share, own = (f"{100 * value:.2f} %" for value in (top1, encoders))
            note(f"{what} higher than this encoder: {share} against {own} {measured}{doubt}")


def show_measured(values: dict[str, Any], as_json: bool) -> None:
    """The results of a command; baselines as a table of their own."""
    if as_json or "baselines" not in values:
        show(values, as_json)
        return
    show({key: value for key, value in values.items() if key not in ADDED}, as_json)
    _show_compared(values)


def _show_compared(values: dict[str, Any]) -> None:
    """The rows of the encoder and its baselines, chance, and how far the accuracy may be off."""
    from byol.bundle.measured import BASELINES

    rows = {"this encoder": values} | {BASELINES[name]: row for name, row in values["baselines"].items()}
    click.echo(f"{'':<18}{'top-1':>9}{'top-5':>9}{'difference':>13}")
    for name, row in rows.items():
        points = "" if row is values else f"{100 * (row['top1'] - values['top1']):+.2f}"
        click.echo(f"{name:<18}{row['top1']:>9.2%}{row['top5']:>9.2%}{points:>13}".rstrip())
    click.echo(f"{'chance':<18}{values['chance']:>9.2%}")
    error, n_test = 100 * values["standard_error"], values["n_test"]
    click.echo(f"standard error of the encoder's top-1: {error:.2f} points ({n_test:,} test images)")
