"""Rows of pictures: in each row one image, framed and set apart, and those that belong to it, with words beneath."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from byol.files.atomic import atomic_file

SOFTWARE = "byol"  # in a PNG's text chunk of that name, and in a page's `generator`

INK, SOFT, WRONG, PAPER, PANEL = "#1b1e23", "#5c636d", "#b3392f", "#ffffff", "#f1f3f5"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SIDE = 112  # of a tile in pixels
GAP, FRAME, MARGIN = (
    10,
    3,
    2,
)  # between tiles; a frame's width, and the white inside it, without which dark images hide it
APART = 14  # more between the first of a row and the others
LETTERS, LINE = 13, 16  # size and height of a line of words


@dataclass(frozen=True)
class Tile:
    """An image with a `name` (its class) and a `note` beneath; `wrong`: framed in red, its name crossed."""

    image: Image.Image
    name: str = ""
    note: str = ""
    wrong: bool = False


def draw_grid(path: Path, rows: Sequence[Sequence[Tile]], title: str = "", side: int = SIDE) -> None:
    """Write a PNG of rows of tiles, each fitted into `side` x `side` (16 or more); the first of a row stands apart."""
    columns = max(len(row) for row in rows)
    words = 2 if any(tile.name for row in rows for tile in row) else 1
    words = words if any(tile.note or tile.name for row in rows for tile in row) else 0
    top, height = (GAP + 2 * LINE if title else GAP), side + GAP + words * LINE + (GAP if words else 0)
    width = GAP + columns * (side + GAP) + (APART if columns > 1 else 0)
    picture = Image.new("RGB", (width, top + len(rows) * height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), fitted(title, LETTERS, width - 2 * GAP), SOFT, font(LETTERS))
    for line, row in enumerate(rows):
        for column, tile in enumerate(row):
            left = GAP + column * (side + GAP) + (APART if column else 0)
            _draw_tile(picture, draw, tile, (left, top + line * height), side, asked=column == 0)
    made_by = PngInfo()
    made_by.add_text("Software", SOFTWARE)
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=made_by)


def _draw_tile(
    picture: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, at: tuple[int, int], side: int, asked: bool
) -> None:
    framed = asked or tile.wrong
    shown = fit(tile.image, side - (2 * (FRAME + MARGIN) if framed else 0))
    left, top = at[0] + (side - shown.width) // 2, at[1] + (side - shown.height) // 2
    picture.paste(shown, (left, top))
    if framed:
        edge = FRAME + MARGIN
        box = (left - edge, top - edge, left + shown.width + edge - 1, top + shown.height + edge - 1)
        draw.rectangle(box, outline=INK if asked else WRONG, width=FRAME)
    indent, y = 0, at[1] + side + 4
    if tile.wrong:
        _draw_cross(draw, at[0], y + 3)
        indent = LETTERS
    if tile.name:
        name = fitted(tile.name, LETTERS, side - indent)
        draw.text((at[0] + indent, y), name, WRONG if tile.wrong else INK, font(LETTERS))
        y += LINE
    draw.text((at[0], y), fitted(tile.note, LETTERS, side), SOFT, font(LETTERS))


def _draw_cross(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """The mark of what is wrong, for those who see no red."""
    draw.line((x, y, x + 8, y + 8), WRONG, 2)
    draw.line((x, y + 8, x + 8, y), WRONG, 2)


def fit(image: Image.Image, side: int) -> Image.Image:
    """The whole image in its proportions within `side` x `side`; a small one is enlarged by a whole factor."""
    scale = side / max(image.size)
    if scale >= 1:
        factor = int(scale)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


# ------------------------------------------------------------------------ words, in the font that Pillow brings


@cache
def font(size: int) -> Font:
    """Pillow's own font, `size` pixels high."""
    return ImageFont.load_default(size)


def fitted(text: str, size: int, width: float) -> str:
    """A text that the font can draw within `width` pixels: letters without accents, and an ellipsis at a cut.

    A character that it lacks becomes a question mark.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text[:200]) if not unicodedata.combining(c))
    shown = "".join(c if _known(c, size) else "?" for c in plain)
    if length(shown, size) <= width:
        return shown
    while shown and length(shown + "\u2026", size) > width:
        shown = shown[:-1]
    return shown.rstrip(" _-.") + "\u2026"


def length(text: str, size: int) -> float:
    """The width of a text in pixels."""
    return font(size).getlength(text)


@cache
def _known(character: str, size: int) -> bool:
    """Whether the font has a character; what it lacks is drawn as what no font has is."""
    return bytes(font(size).getmask(character)) != bytes(font(size).getmask("\uffff"))
