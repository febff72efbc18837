"""The map of the features: points that show their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from byol.serve.report.explore import Exploration
from byol.serve.report.placing import PADDING, Placed, midst, place_names
from byol.serve.report.style import (
    COLOURS,
    DARK_PAPER,
    FONT,
    LIGHT_PAPER,
    as_ink,
    class_colours,
    new_figure,
    short_names,
    show_on_hover,
)

PICTURE = "display: block; width: 80px; height: 80px; object-fit: contain"
SIDES = {"narrow": 280, "wide": 560, "half": 400}  # of a map's frame in pixels: on a phone, alone, beside another


def map_figures(shown: Exploration) -> list[figure]:
    """The maps side by side, over one source: hovering shows the picture, which page.js puts into the source."""
    classes = sorted({label for label in shown.labels if label is not None})
    colour = class_colours(classes)
    columns: dict[str, Any] = {
        "id": shown.ids,
        "label": [label or "no label" for label in shown.labels],
        "colour": [colour.get(label or "", COLOURS[0]) for label in shown.labels],
        "ring": [0.4] * len(shown.ids),
        "alpha": [0.8] * len(shown.ids),  # page.js fades all but a chosen class
    }
    if shown.pictures:
        columns["picture"] = [""] * len(shown.ids)
    for projection in shown.projections:
        columns |= {f"{projection.name} {axis}": projection.points[:, axis] for axis in (0, 1)}
    source = ColumnDataSource(columns, name="map")
    picture = f"<img src='@picture' alt='' style='{PICTURE}'>" if shown.pictures else ""
    plots = []
    for projection in shown.projections:
        plot = new_figure(
            None,
            tools="pan,wheel_zoom,reset",
            x_axis_label=projection.axes[0],
            y_axis_label=projection.axes[1],
            match_aspect=True,
            aspect_ratio=1,
        )
        plot.toolbar.logo, plot.toolbar.active_drag, plot.toolbar.active_scroll = None, None, None
        x, y = f"{projection.name} 0", f"{projection.name} 1"
        dots = plot.scatter(
            x,
            y,
            source=source,
            size=7,
            fill_color="colour",
            fill_alpha="alpha",
            line_color="#888888",
            line_alpha="ring",
        )
        for axis in (plot.x_range, plot.y_range):
            axis.renderers, axis.range_padding = [dots], PADDING  # names may stand outside
        show_on_hover(plot, [dots], "@label", ("", "@id"), picture=picture)
        if colour:
            _name_classes(plot, projection.name, projection.points, shown.labels, colour, len(shown.projections) == 1)
        plots.append(plot)
    return plots


def _name_classes(
    plot: figure, map_name: str, points: np.ndarray, labels: Sequence[str | None], colour: dict[str, str], alone: bool
) -> None:
    """Each class's name near its points, in its colour, for a narrow and for a wide page; page.js chooses."""
    short = short_names(list(colour))
    columns: dict[str, Any] = {
        "class": list(colour),
        "name": list(short.values()),
        "swatch": list(colour.values()),
        "light": [as_ink(own, LIGHT_PAPER) for own in colour.values()],
        "dark": [as_ink(own, DARK_PAPER) for own in colour.values()],
        "alpha": [1.0] * len(colour),
    }
    anchors = np.array([midst(points[[label == name for label in labels]]) for name in colour])
    columns |= {"from_x": anchors[:, 0], "from_y": anchors[:, 1]}
    for width, side in (("narrow", SIDES["narrow"]), ("wide", SIDES["wide" if alone else "half"])):
        placed = place_names(points, labels, short, side)
        columns |= _columns(width, [placed[name] for name in colour])
    columns |= {key: columns[f"wide_{key}"] for key in ("x", "y", "end_x", "end_y")} | {"ink": columns["light"]}
    source = ColumnDataSource(columns, name=f"names {map_name}")
    plot.segment("from_x", "from_y", "end_x", "end_y", source=source, color="swatch", alpha="alpha", line_width=1)
    plot.text(
        "x",
        "y",
        "name",
        source=source,
        text_color="ink",
        text_alpha="alpha",
        text_align="center",
        text_baseline="middle",
        text_font=value(FONT),  # a plain string would name a column
        text_font_size="12px",
        text_font_style="bold",
    )


def _columns(width: str, placed: Sequence[Placed]) -> dict[str, np.ndarray]:
    return {f"{width}_{key}": np.array([getattr(p, key) for p in placed]) for key in ("x", "y", "end_x", "end_y")}
