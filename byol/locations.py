"""Where images lie, as a command is told: a path, a URL, a pattern or a data set's name. Light to import."""

from __future__ import annotations

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


class LocationType(click.ParamType[Location]):
    """A URL as text, anything else as a path."""

    name = "location"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """The location; whether there is anything is for `byol.sources` to say."""
        return location_of(value)


LOCATION = LocationType()
