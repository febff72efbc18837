"""Rows of pictures: in each row one image, set apart, and those that belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from byol.files.atomic import atomic_file

SOFTWARE = "byol"  # in a PNG's text chunk of that name, and in a page's `generator`

GAP = 4


def draw_grid(path: Path, rows: Sequence[Sequence[Image.Image]], side: int = 48) -> None:
    """Write a PNG of rows of RGB images, each fitted into `side` x `side`; the first of a row stands apart."""
    columns = max(len(row) for row in rows)
    picture = Image.new("RGB", (columns * (side + GAP) + 3 * GAP, len(rows) * (side + GAP) + GAP), "white")
    for line, row in enumerate(rows):
        for column, image in enumerate(row):
            shown = _fitted(image, side)
            left = GAP + column * (side + GAP) + (2 * GAP if column else 0) + (side - shown.width) // 2
            picture.paste(shown, (left, GAP + line * (side + GAP) + (side - shown.height) // 2))
    made_by = PngInfo()
    made_by.add_text("Software", SOFTWARE)
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=made_by)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """The whole image in its proportions; a small one is enlarged pixel by pixel."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
