"""A run's images in all of its processes: the first decides and decodes, the others follow."""

from __future__ import annotations

import hashlib
from typing import Any

from byol.console import progress, warnings_as_notes
from byol.images.source import ImageSource
from byol.training.data.decoded import canvas_side, open_images
from byol.training.data.intake import ImageTensor, Intake, StreamedImages
from byol.training.parallel.processes import World


def require_shared(world: World, what: str, facts: dict[str, Any] | None) -> None:
    """Raise `ValueError` in all processes when they have not listed the same images, as while files still arrive.

    `facts`: their number as `images`, and the digests of `byol.training.begun.identity`; None where there are none.
    """
    world.wait()  # listing may take long
    known = facts or {"images": 0}
    world.require_same(known["images"], f"number of {what}")
    digests = hashlib.sha256(f"{known.get('digest')} {known.get('content')}".encode()).hexdigest()
    world.require_same(int(digests[:15], 16), f"{what} (digests)")  # 60 bits


def canvas_side_of(world: World, source: ImageSource, image_size: int) -> int:
    """What the first process finds, in all of them."""
    side = 0
    if world.first:
        with progress(f"look at {source.name}", None):
            side = canvas_side(source, image_size)
    return int(world.tell(str(side)))


def opened(
    world: World, source: ImageSource, side: int, begun: Intake | None
) -> tuple[ImageTensor | StreamedImages, Intake]:
    """The images in every process, and how they are read: the first process decides and decodes, the others follow."""
    images: ImageTensor | StreamedImages | None = None
    with warnings_as_notes():
        if world.first:
            with progress(f"decode {source.name}", len(source)) as advance:
                images = open_images(source, side, advance, begun=begun)
            begun = begun or Intake.of(images, source)
        told = Intake.from_text(world.tell(begun.to_text() if begun else ""))
        if images is None:
            images = open_images(source, side, begun=told)
    world.wait()  # a process that finds nothing in the cache decodes for itself
    return images, told
