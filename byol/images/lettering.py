"""Words in pictures, in the font that Pillow brings: it has little more than ASCII."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import ImageFont

INK, SOFT, WRONG, PAPER, PANEL = "#1b1e23", "#5c636d", "#b3392f", "#ffffff", "#f1f3f5"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


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
