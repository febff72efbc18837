"""Where images lie, as a command is told: a path, a URL, a pattern or a data set's name. Light to import."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

Location = str | Path  # `str` for URLs, whose slashes `Path` would fold


def is_url(location: object) -> bool:
    """Whether a location is a URL, `protocol://...`, and not a local path."""
    return "://" in str(location)


def location_of(text: str) -> Location:
    """What a user wrote: a URL as text, anything else as a path."""
    return text if is_url(text) else Path(text)


def last_part(location: Location) -> str:
    """The name that a file may carry of where data lie: nothing of the folders above."""
    return str(location).rstrip("/").rpartition("/")[2] if is_url(location) else Path(location).resolve().name


def names_below(files: Sequence[Path], root: Path | None = None) -> list[str]:
    """Files, local or remote, as paths below `root` with `/`, else below the folder that all of them share."""
    start = str(root) if root is not None else os.path.commonpath([str(file.parent) for file in files])
    return [os.path.relpath(str(file), start).replace(os.sep, "/") for file in files]


class LocationType(click.ParamType[Location]):
    """A URL as text, anything else as a path."""

    name = "location"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """The location; whether there is anything is for `byol.sources` to say."""
        return location_of(value)


LOCATION = LocationType()
