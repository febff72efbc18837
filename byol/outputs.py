"""Where a command may write: never over what it reads, nor over a file that byol did not write. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from byol.files import behind_links, writable_above
from byol.locations import Location
from byol.text import printable, reason_of


@dataclass(frozen=True)
class Kind:
    """A kind of file that a command writes: `name` in words; `holds` tells whether a file is one that byol wrote."""

    name: str
    holds: Callable[[Path], bool]


def require_output(out: Path, kind: Kind, inputs: Iterable[Location | None] = ()) -> None:
    """Raise `ValueError` when writing the file `out` would lose anything, or cannot be done; before the work.

    Refused are the `inputs` under whatever spelling, existing files but empty ones and those of the same `kind`, and
    what is no file. Behind a link counts what it points to.
    """
    name = printable(out)
    _require_writable(name, Path(os.path.realpath(out)))
    try:
        final = behind_links(out)
        size = final.stat().st_size if final.exists() else 0
    except OSError as error:
        raise ValueError(f"{name} cannot be written to: {reason_of(error)}; name a file") from error
    _require_apart(out, inputs)
    if size and not kind.holds(final):
        raise ValueError(f"{name} exists and is not {kind.name} that byol wrote; choose another name, or move it away")


def require_output_folder(out: Path, inputs: Iterable[Location | None] = ()) -> None:
    """The same for a folder that is added to; what it holds is for its writer to judge."""
    name, final = printable(out), Path(os.path.realpath(out))
    if os.path.lexists(final) and not final.is_dir():
        raise ValueError(f"{name} is not a folder; choose another name")
    _require_apart(out, inputs)
    _require_writable(name, final)


def _require_apart(out: Path, inputs: Iterable[Location | None]) -> None:
    for location in inputs:
        if location is not None and _is_same(out, location):
            raise ValueError(f"{printable(out)} is what is read ({printable(location)}); choose another name")


def _is_same(out: Path, location: Location) -> bool:
    try:
        return os.path.samefile(out, str(location).removeprefix("file://"))
    except (OSError, ValueError):
        return False


def _require_writable(name: str, final: Path) -> None:
    parent, writable = writable_above(final)
    if not writable:
        raise ValueError(f"{name} cannot be made: {printable(parent)} is no folder that can be written to")
