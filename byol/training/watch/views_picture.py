"""The picture of the first batch's views: each image beside what the encoder is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from byol.files.atomic import atomic_file
from byol.images.grid import INK, PANEL, PAPER, fit, fitted, font, length

Column = tuple[str, Sequence[Image.Image]]  # a word, and one picture of each image

SIDE = 128  # of a picture in pixels, at most
PAD, GAP, APART = 8, 4, 12  # within a group, between its pictures, between groups
LETTERS, LINE = 14, 20
ACROSS = 12  # pictures in a row, as far as whole groups allow


def save_views(path: Path, columns: Sequence[Column]) -> None:
    """Write a PNG of groups, one for each image: its picture of every column, side by side, the column's word above.

    Pictures above 128 pixels are reduced; smaller ones are enlarged by a whole factor, pixel by pixel.
    """
    groups = list(zip(*([fit(image, SIDE) for image in images] for _, images in columns), strict=True))
    words = [word for word, _ in columns]
    across = min(len(groups), max(1, ACROSS // len(columns)))
    cell = max(max(image.size) for group in groups for image in group)
    width, height = 2 * PAD + len(columns) * (cell + GAP) - GAP, 2 * PAD + LINE + cell
    lines = -(-len(groups) // across)
    size = (APART + across * (width + APART), APART + lines * (height + APART))
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for number, group in enumerate(groups):
        left = APART + number % across * (width + APART)
        top = APART + number // across * (height + APART)
        draw.rounded_rectangle((left, top, left + width - 1, top + height - 1), 6, PANEL)
        for place, (word, image) in enumerate(zip(words, group, strict=True)):
            _draw_named(picture, draw, word, image, (left + PAD + place * (cell + GAP), top + PAD), cell)
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG")


def _draw_named(
    picture: Image.Image, draw: ImageDraw.ImageDraw, word: str, image: Image.Image, at: tuple[int, int], cell: int
) -> None:
    """A word, and an image in the middle of the cell beneath."""
    shown = fitted(word, LETTERS, cell)
    draw.text((at[0] + (cell - length(shown, LETTERS)) / 2, at[1]), shown, INK, font(LETTERS))
    picture.paste(image, (at[0] + (cell - image.width) // 2, at[1] + LINE + (cell - image.height) // 2))


def pictures(views: Tensor) -> list[Image.Image]:
    """Views (B, 3, S, S) in 0..1 as pictures."""
    pixels = (views.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(view) for view in pixels]


def originals(pixels: Tensor, aspect: Tensor) -> list[Image.Image]:
    """Canvases uint8 (B, M, M, 3) in the proportions (B,), width / height, of their images."""
    stretched = zip(pixels.cpu().numpy(), aspect.tolist(), strict=True)
    return [_in_proportion(Image.fromarray(canvas), ratio) for canvas, ratio in stretched]


def _in_proportion(canvas: Image.Image, aspect: float) -> Image.Image:
    side = canvas.width
    size = (side, max(1, round(side / aspect))) if aspect > 1 else (max(1, round(side * aspect)), side)
    return canvas if size == canvas.size else canvas.resize(size, Image.Resampling.BICUBIC)
