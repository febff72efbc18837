"""Where a command may write: never over what it reads, nor over a file that byol did not write. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from byol.files.atomic import behind_links, is_mount, require_writable
from byol.images.location import Location
from byol.images.walk import is_image
from byol.text import printable, reason_of


@dataclass(frozen=True)
class Kind:
    """A kind of file that a command writes: `name` in words; `holds` tells whether a file is one that byol wrote."""

    name: str
    holds: Callable[[Path], bool]


def require_output(out: Path, kind: Kind, inputs: Iterable[Location | None] = ()) -> None:
    """Raise `ValueError` when writing the file `out` would lose anything, or cannot be done; before the work.

    Refused are the `inputs` under whatever spelling, pictures in a folder of them, existing files but empty ones and
    those of the same `kind`, and what is no file. Behind a link counts what it points to.
    """
    name = printable(out)
    require_writable(out, Path(os.path.realpath(out)).parent)
    try:
        final = behind_links(out)
        size = final.stat().st_size if final.exists() else 0
    except OSError as error:
        raise ValueError(f"{name} cannot be written to: {reason_of(error)}; name a file") from error
    _require_apart(out, inputs)
    if is_mount(final):
        raise ValueError(f"{name} is a mount point, which no new file can replace; mount its folder instead")
    if size and not kind.holds(final):
        raise ValueError(f"{name} exists and is not {kind.name} that byol wrote; choose another name, or move it away")


def require_output_folder(out: Path, inputs: Iterable[Location | None] = ()) -> None:
    """The same for a folder that is added to; what it holds is for its writer to judge."""
    final = Path(os.path.realpath(out))
    if os.path.lexists(final) and not final.is_dir():
        raise ValueError(f"{printable(out)} is not a folder; choose another name")
    _require_apart(out, inputs)
    require_writable(out, final)


def _require_apart(out: Path, inputs: Iterable[Location | None]) -> None:
    for location in inputs:
        if location is not None and _is_same(out, location):
            raise ValueError(f"{printable(out)} is what is read ({printable(location)}); choose another name")
        if location is not None and _is_picture_in(out, location):
            raise ValueError(
                f"{printable(out)} would count as an image of {printable(location)}, where it lies; choose a place "
                "outside of what is read"
            )


def _is_same(out: Path, location: Location) -> bool:
    try:
        return os.path.samefile(out, _local(location))
    except (OSError, ValueError):
        return False


def _is_picture_in(out: Path, location: Location) -> bool:
    final = Path(os.path.realpath(out))
    return is_image(os.fsencode(final.name)) and final.is_relative_to(os.path.realpath(_local(location)))


def _local(location: Location) -> str:
    return str(location).removeprefix("file://")
