"""What all figures of a report share: colours, sizes, tooltips. Drawn by Bokeh.

The page's style sheet decides on light or dark: Bokeh reads its `--bk-...` variables (page.css).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bokeh.models import HoverTool
from bokeh.palettes import Category10, Category20
from bokeh.plotting import figure
from bokeh.themes import Theme

# Colours that can be told from black and from white, also by the colour-blind; after them the same, dashed.
COLOURS = ("#2b7bba", "#d55e00", "#009e73", "#b565a7", "#8a8a8a", "#b07d00")
DASHES = ("solid", "dashed", "dotted")
MOST_LETTERS = 14  # of a name inside a figure: a matrix of long names has no room left on a phone
FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"

LIGHT_PAPER, DARK_PAPER = "#ffffff", "#14171b"  # as in page.css
LEAST_CONTRAST = 4.5  # of words to their paper (WCAG 2.2, success criterion 1.4.3)

Stroke = tuple[str, str]  # colour and dash pattern

THEME = Theme(
    json={
        "attrs": {
            "Plot": {
                "background_fill_color": None,
                "border_fill_color": "white",
                "outline_line_color": None,
                "min_border_left": 48,
                "min_border_right": 12,
                "min_border_top": 10,
            },
            "Axis": {
                "axis_label_text_font": FONT,
                "axis_label_text_font_size": "12px",
                "axis_label_text_font_style": "normal",
                "major_label_text_font": FONT,
                "major_label_text_font_size": "11px",
                "minor_tick_line_color": None,
                "major_tick_in": 0,
                "major_tick_out": 4,
            },
            "Grid": {"grid_line_width": 1},
            "Legend": {
                "label_text_font": FONT,
                "label_text_font_size": "11px",
                "background_fill_alpha": 0,
                "border_line_color": None,
                "glyph_width": 14,
                "glyph_height": 14,
                "spacing": 0,
                "padding": 0,
                "margin": 4,
            },
        }
    }
)


def strokes(count: int) -> list[Stroke]:
    """Colour and dash pattern of each of some entries."""
    return [(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i in range(count)]


def new_figure(height: int | None, tools: str = "", **options: Any) -> figure:
    """A figure as wide as the page allows, with a toolbar only if it has tools."""
    size = {} if height is None else {"height": height}
    return figure(
        sizing_mode="stretch_width",
        tools=tools,
        toolbar_location="above" if tools else None,
        **size,
        **options,
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Short names for a figure: a long name by its two ends, numbered where these are shared."""
    ends = {name: _ends(name) for name in names}
    shared = Counter(ends.values())
    return {name: f"{i} {ends[name]}" if shared[ends[name]] > 1 else ends[name] for i, name in enumerate(names, 1)}


def _ends(name: str) -> str:
    half = MOST_LETTERS // 2 - 1
    return name if len(name) <= MOST_LETTERS else f"{name[:half]}\u2026{name[-half:]}"


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """A colour for each class; none at all where there are more than 20."""
    if not 1 < len(classes) <= 20:
        return {}
    palette = Category10[10] if len(classes) <= 10 else Category20[20]
    return dict(zip(classes, palette, strict=False))


def as_ink(colour: str, paper: str) -> str:
    """A colour (#rrggbb) for words on paper: nearer to black or white until it stands out from it, by 4.5 to 1."""
    ink = 0.0 if luminance(paper) > 0.18 else 255.0
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    for share in range(0, 101, 5):
        mixed = "#" + "".join(f"{round(part + (ink - part) * share / 100):02x}" for part in parts)
        if contrast(mixed, paper) >= LEAST_CONTRAST:
            break
    return mixed


def contrast(one: str, other: str) -> float:
    """How far two colours (#rrggbb) stand apart, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of a colour (#rrggbb), 0 to 1 (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def show_on_hover(
    plot: figure, renderers: list[Any], head: str, *rows: tuple[str, str], mode: str = "mouse", picture: str = ""
) -> None:
    """What is shown of the point under the mouse: a picture, a bold line, and lines of name and value."""
    lines = "".join(f"<div><span style='color: #5c636d'>{name}</span> {value}</div>" for name, value in rows)
    html = f"<div style='max-width: 16rem; overflow-wrap: anywhere'>{picture}<div><b>{head}</b></div>{lines}</div>"
    plot.add_tools(HoverTool(renderers=renderers, tooltips=html, mode=mode))
