"""The map of the features: points that show their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Label, PlainText
from bokeh.palettes import Category10, Category20
from bokeh.plotting import figure

from byol.serve.report.explore import Exploration
from byol.serve.report.style import COLOURS, FONT, new_figure, short_names, show_on_hover

PICTURE = "display: block; width: 80px; height: 80px; object-fit: contain"


def map_figures(shown: Exploration) -> list[figure]:
    """The maps side by side, over one source: hovering shows the picture, which page.js puts into the source."""
    classes = sorted({label for label in shown.labels if label is not None})
    colour = class_colours(classes)
    columns: dict[str, Any] = {
        "id": shown.ids,
        "label": [label or "no label" for label in shown.labels],
        "colour": [colour.get(label or "", COLOURS[0]) for label in shown.labels],
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
            x, y, source=source, size=7, fill_color="colour", fill_alpha=0.75, line_color="#88888866", line_width=0.5
        )
        show_on_hover(plot, [dots], "@label", ("", "@id"), picture=picture)
        _name_classes(plot, projection.points, shown.labels, classes if colour else [])
        plots.append(plot)
    return plots


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """A colour for each class; none at all where there are more than 20."""
    if not 1 < len(classes) <= 20:
        return {}
    palette = Category10[10] if len(classes) <= 10 else Category20[20]
    return dict(zip(classes, palette, strict=False))


def _name_classes(plot: figure, points: np.ndarray, labels: Sequence[str | None], classes: Sequence[str]) -> None:
    """Each class's name at the middle of its points."""
    for name, short in short_names(classes).items():
        middle = np.median(points[[label == name for label in labels]], axis=0)
        plot.add_layout(
            Label(
                x=middle[0],
                y=middle[1],
                text=PlainText(text=short),  # a plain string may be taken for TeX
                text_align="center",
                text_baseline="middle",
                text_font=FONT,
                text_font_size="13px",
                text_font_style="bold",
                background_fill_color="white",
                background_fill_alpha=0.75,
                padding=2,
                border_radius=3,
            )
        )
