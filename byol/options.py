"""Option types that click lacks: locations, finite numbers, outputs; and a warning of two options. Torch-free."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from byol.console import note
from byol.images.location import Location, location_of, same_place
from byol.text import printable


class FiniteRange(click.FloatRange):
    """A range without NaN, which click accepts as no comparison rules it out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a wrong one ends the command."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@contextmanager
def of_option(name: str) -> Iterator[None]:
    """A `ValueError` in the block is the fault of the option `name`: the command ends with exit status 2."""
    try:
        yield
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=name) from error


class Output(click.Path):
    """A path to write to; not empty, as that would mean the current folder."""

    def __init__(self, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """The path; an empty name ends the command."""
        if not os.fspath(value):
            self.fail("the name is empty.", param, ctx)
        return super().convert(value, param, ctx)


class OutputFile(Output):
    """A file to write, in a writable folder: checked before the work begins."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """The path; a missing or read-only folder ends the command."""
        path = super().convert(value, param, ctx)
        folder = Path(os.fspath(value)).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"{folder} is not a writable folder; create it first.", param, ctx)
        return path


export_check_option = click.option(
    "--export-check/--no-export-check",
    default=True,
    show_default=True,
    help="First check that the encoder can be exported (a few seconds; not needed for ResNets of the usual sizes).",
)


class Duration(click.ParamType[float]):
    """A length of time such as 45m, 2h, 1h30m or 90s; in seconds."""

    name = "duration"
    _PARTS = re.compile(r"(?:(\d{1,6}(?:\.\d+)?)d)?(?:(\d{1,6}(?:\.\d+)?)h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", re.ASCII)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds; anything else ends the command."""
        if isinstance(value, int | float):
            return float(value)
        found = self._PARTS.fullmatch(value.strip().lower())
        units = (86400, 3600, 60, 1)
        seconds = sum(float(part or 0) * unit for part, unit in zip(found.groups(), units, strict=True)) if found else 0
        if seconds <= 0:
            self.fail(f"{value!r:.40} is not a length of time; write one such as 45m, 2h or 1h30m.", param, ctx)
        return float(seconds)


class LocationType(click.ParamType[Location]):
    """A URL as text, anything else as a path."""

    name = "location"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """The location; `byol.images.open` checks that it exists."""
        return location_of(value)


LOCATION = LocationType()


def note_same(
    train: Location,
    test: Location | None,
    named: str = "--train and --test",
    advice: str = "`byol knn` without --test leaves each one out",
) -> None:
    """Warn where accuracies would be of the very images that were learned from; `named`: what a command calls both."""
    if test is not None and same_place(train, test):
        note(
            f"warning: {printable(test)} is both {named}: an accuracy on images that were learned from says nothing "
            f"about others ({advice})"
        )
