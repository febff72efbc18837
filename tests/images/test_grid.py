"""Pictures of rows of images: what is framed, what is marked, what is written beneath."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from byol.images.grid import APART, GAP, INK, LINE, SIDE, WRONG, Tile, draw_grid, fitted, length

GREY = Image.new("RGB", (SIDE, SIDE), "#808080")


def drawn(path: Path, rows: list[list[Tile]], title: str = "", side: int = SIDE) -> np.ndarray:
    draw_grid(path, rows, title, side)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def has(pixels: np.ndarray, colour: str) -> bool:
    return bool((pixels == ImageColor.getrgb(colour)).all(-1).any())


def cell(pixels: np.ndarray, column: int) -> np.ndarray:
    left = GAP + column * (SIDE + GAP) + (APART if column else 0)
    return pixels[GAP - 4 :, left - 4 : left + SIDE + 4]


def test_a_grid_shows_images_whole(tmp_path: Path) -> None:
    wide, tall = Image.new("RGB", (60, 30), (255, 0, 0)), Image.new("RGB", (3, 6), (0, 0, 255))
    pixels = drawn(tmp_path / "g.png", [[Tile(wide), Tile(tall)]], side=40)
    assert pixels.shape == (2 * GAP + 40, GAP + 2 * (40 + GAP) + APART, 3)
    second = GAP + 40 + GAP + APART
    colours = [tuple(pixels[y, x]) for y, x in ((GAP + 20, GAP + 7), (GAP + 2, GAP + 20), (GAP + 20, second + 20))]
    assert colours == [(255, 0, 0), (255, 255, 255), (0, 0, 255)]


def test_the_query_is_framed_and_what_is_wrong_is_marked_not_by_colour_alone(tmp_path: Path) -> None:
    row = [Tile(GREY, "cat"), Tile(GREY, "cat", "0.91"), Tile(GREY, "dog", "0.90", wrong=True)]
    pixels = drawn(tmp_path / "g.png", [row])
    asked, right, wrong = (cell(pixels, column) for column in range(3))
    assert has(asked[:SIDE], INK)
    assert not has(right[:SIDE], INK)
    assert [has(part, WRONG) for part in (asked, right, wrong)] == [False, False, True]
    plain = cell(drawn(tmp_path / "g.png", [[row[0], row[1], Tile(GREY, "dog", "0.90")]]), 2)
    name = slice(SIDE + 4, SIDE + 8 + LINE)
    assert (wrong[name, :16].min(2) < 250).sum() != (plain[name, :16].min(2) < 250).sum()  # a cross, then the name


def test_words_take_a_line_each_and_a_title_two(tmp_path: Path) -> None:
    heights = [
        drawn(tmp_path / "g.png", [[tile]], title=title).shape[0]
        for tile, title in ((Tile(GREY), ""), (Tile(GREY, note="0.9"), ""), (Tile(GREY, "cat"), ""), (Tile(GREY), "t"))
    ]
    assert [height - heights[0] for height in heights] == [0, LINE + GAP, 2 * LINE + GAP, 2 * LINE]


@pytest.mark.parametrize(
    ("text", "shown"), [("cat", "cat"), ("Caf\u00e9", "Cafe"), ("\u732b", "?"), ("", ""), ("$x^2$", "$x^2$")]
)
def test_letters_that_the_font_lacks_are_replaced(text: str, shown: str) -> None:
    assert fitted(text, 13, 200) == shown


def test_long_names_end_in_an_ellipsis() -> None:
    for text in ("w" * 1_000_000, "cassette_player with two decks"):
        shown = fitted(text, 13, SIDE)
        assert shown.endswith("\u2026")
        assert length(shown, 13) <= SIDE
