"""The figures of a report, drawn by Bokeh. What is light or dark, the page's style sheet says (`--bk-...` in page.css).

Every axis is labelled with its unit. Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import (
    BoxAnnotation,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    Label,
    NumeralTickFormatter,
    Range1d,
    Span,
    Whisker,
)
from bokeh.palettes import Category10, Category20
from bokeh.plotting import figure
from bokeh.themes import Theme

from byol.serve.report.explore import Exploration
from byol.serve.report.measure import DRAWS, Scores
from byol.serve.report.runs import Record

# Colours that can be told from black and from white, also by the colour-blind; after them the same, dashed.
COLOURS = ("#2b7bba", "#d55e00", "#009e73", "#b565a7", "#8a8a8a", "#b07d00")
DASHES = ("solid", "dashed", "dotted")
POINTS = 600  # of a curve
COLLAPSED_STD_RATIO, HEALTHY_STD_RATIO, COLLAPSED_RANK = 0.1, 0.5, 1.5  # as `byol train` warns (byol.monitor)
MOST_CLASSES = 30  # rows of a confusion matrix
MOST_COUNTS = 12  # classes up to which its cells carry their counts
FEW_POINTS = 30  # up to which a curve shows them
PICTURE = "display: block; width: 80px; height: 80px; object-fit: contain; image-rendering: pixelated"
FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"

THEME = Theme(
    json={
        "attrs": {
            "Plot": {
                "background_fill_color": None,
                "border_fill_color": None,
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


@dataclass(frozen=True)
class Curve:
    """One key of metrics.jsonl: its title, the label of its axis, and how to read it."""

    key: str
    title: str
    axis: str
    reading: str


CURVES = (
    Curve(
        "loss",
        "Loss",
        "loss (4 \u2212 4 cosine; 0 to 8)",
        "Falls steeply, then slowly. It alone proves nothing: a collapsing run has a fine loss too.",
    ),
    Curve(
        "knn_top1",
        "kNN while training",
        "top-1 accuracy (%)",
        "Should rise with training; at or falling to chance means that nothing useful is learned.",
    ),
    Curve(
        "std_ratio",
        "Spread of projections (std_ratio)",
        "std_ratio (1 = even over the sphere)",
        f"Healthy inside the green band. Below the red line at {COLLAPSED_STD_RATIO:g} all images get nearly the same "
        "output: collapse.",
    ),
    Curve(
        "rankme",
        "Effective rank (rankme)",
        "directions in use (count)",
        f"Tens of directions, changing slowly, are healthy; a fall to the red line at {COLLAPSED_RANK:g} is collapse. "
        "Compare only runs of one batch size.",
    ),
    Curve(
        "cosine",
        "Agreement of the two views (cosine)",
        "cosine, prediction to target",
        "Rises to 0.6 to 0.95. Near 1 with a healthy spread is success, near 1 with a spread near 0 is collapse.",
    ),
    Curve(
        "lr",
        "Learning rate",
        "learning rate (per step)",
        "The schedule: a warm-up, then a cosine to zero. Spikes of the loss near its peak ask for a lower rate.",
    ),
    Curve(
        "tau",
        "Momentum of the target (tau)",
        "tau (share kept per step)",
        "How much of itself the target network keeps at each step; it rises to 1, where the target stands still.",
    ),
)


def strokes(count: int) -> list[tuple[str, str]]:
    """Colour and dash pattern of each of some entries."""
    return [(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i in range(count)]


def thinned(records: Sequence[Record]) -> list[Record]:
    """At most 600 records, evenly spread, the first and the last among them."""
    rows = np.unique(np.linspace(0, len(records) - 1, min(POINTS, len(records)), dtype=int))
    return [records[row] for row in rows]


def curve_figure(curve: Curve, runs: Sequence[tuple[str, list[Record], tuple[str, str]]]) -> figure | None:
    """One metric of named runs over epochs; None when no run has it."""
    plot = _figure(230, x_axis_label="epoch (passes over the images)", y_axis_label=curve.axis)
    scale = 100 if curve.key == "knn_top1" else 1
    lines = []
    for name, records, (colour, dash) in runs:
        kept = thinned([record for record in records if curve.key in record])
        if not kept:
            continue
        columns: dict[str, Any] = {key: np.array([record[key] for record in kept]) for key in ("epoch", "step")}
        values = scale * np.array([record[curve.key] for record in kept])
        source = ColumnDataSource({**columns, "value": values, "name": [name] * len(kept)})
        lines.append(plot.line("epoch", "value", source=source, color=colour, line_dash=dash, line_width=2))
        if len(kept) <= FEW_POINTS:
            plot.scatter("epoch", "value", source=source, color=colour, size=5)
    if not lines:
        return None
    unit = " %" if scale == 100 else ""
    _hover(plot, lines, "@name", (curve.key, f"@value{{0.[0000]}}{unit}"), ("step", "@step{0,0}"), mode="vline")
    _mark_collapse(plot, curve.key)
    return plot


def _mark_collapse(plot: figure, key: str) -> None:
    limit = {"std_ratio": COLLAPSED_STD_RATIO, "rankme": COLLAPSED_RANK}.get(key)
    if limit is None:
        return
    plot.add_layout(Span(location=limit, dimension="width", line_color="#c8403c", line_width=1.5, line_dash=[4, 3]))
    plot.y_range.start = 0
    if key == "std_ratio":
        plot.add_layout(
            BoxAnnotation(
                bottom=HEALTHY_STD_RATIO,
                top=1,
                fill_color="#009e73",
                fill_alpha=0.12,
                line_color=None,
                level="underlay",
            )
        )


# ------------------------------------------------------------------------------------------------- accuracies


def accuracy_figures(scores: Sequence[tuple[str, Scores, tuple[str, str]]]) -> tuple[figure, figure]:
    """kNN accuracy over k, and linear accuracy over labels a class, of named encoders on one scale."""
    percent = _percent_range(scores)
    return _knn_figure(scores, percent), _few_figure(scores, percent)


def _percent_range(scores: Sequence[tuple[str, Scores, tuple[str, str]]]) -> Range1d:
    """From a multiple of 10 below all accuracies to one above."""
    values = [100 * value for _, s, _ in scores for value in (*s.knn.values(), s.linear)]
    values += [100 * (few.mean + sign * few.deviation) for _, s, _ in scores for few in s.few for sign in (-1, 1)]
    low, high = 10 * np.floor((min(values) - 1) / 10), 10 * np.ceil((max(values) + 1) / 10)
    return Range1d(max(0, low), min(102, high))


def _knn_figure(scores: Sequence[tuple[str, Scores, tuple[str, str]]], percent: Range1d) -> figure:
    plot = _figure(
        300,
        x_axis_type="log",
        y_range=percent,
        x_axis_label="k, neighbours that vote (count, log scale)",
        y_axis_label="top-1 accuracy (%)",
    )
    for name, entry, (colour, dash) in scores:
        ks, top1 = list(entry.knn), [100 * value for value in entry.knn.values()]
        source = ColumnDataSource({"k": ks, "top1": top1, "name": [name] * len(ks)})
        plot.line("k", "top1", source=source, color=colour, line_dash=dash, line_width=2)
        dots = plot.scatter("k", "top1", source=source, color=colour, size=7)
        _hover(plot, [dots], "@name", ("top-1", "@top1{0.0} %"), ("k", "@k"))
    _tick(plot, sorted({k for _, entry, _ in scores for k in entry.knn}))
    return plot


def _few_figure(scores: Sequence[tuple[str, Scores, tuple[str, str]]], percent: Range1d) -> figure:
    plot = _figure(
        300,
        x_axis_type="log",
        y_range=percent,
        x_axis_label="labelled images per class (count, log scale)",
        y_axis_label="top-1 accuracy (%)",
    )
    for name, entry, (colour, dash) in scores:
        few = entry.few
        everything = entry.n_train / len(entry.classes)
        mean = np.array([100 * f.mean for f in few] + [100 * entry.linear])
        deviation = np.array([100 * f.deviation for f in few] + [0.0])
        columns = {
            "labels": [float(f.amount) for f in few] + [everything],
            "mean": mean,
            "low": mean - deviation,
            "high": mean + deviation,
            "said": [f"{m:.1f} \u00b1 {d:.1f} % over {DRAWS} draws" for m, d in zip(mean[:-1], deviation, strict=False)]
            + [f"{mean[-1]:.1f} %"],
            "images": [f"{f.images:,}" for f in few] + [f"all {entry.n_train:,}"],
            "name": [name] * len(mean),
            "marker": ["circle"] * len(few) + ["square"],
        }
        source = ColumnDataSource(columns)
        plot.line("labels", "mean", source=source, color=colour, line_dash=dash, line_width=2)
        whisker = Whisker(
            base="labels", lower="low", upper="high", source=source, line_color=colour, level="annotation"
        )
        for head in (whisker.upper_head, whisker.lower_head):
            head.size, head.line_color = 6, colour
        plot.add_layout(whisker)
        dots = plot.scatter("labels", "mean", source=source, color=colour, marker="marker", size=7)
        _hover(plot, [dots], "@name", ("top-1", "@said"), ("labelled images", "@images"))
    _tick(plot, sorted({int(f.amount) for _, entry, _ in scores for f in entry.few}))
    return plot


def shown_classes(scores: Scores) -> np.ndarray:
    """The classes (rows) of the confusion matrix that are shown: all, or the 30 with most errors, in their order."""
    errors = scores.confusion.sum(1) - np.diag(scores.confusion)
    return np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])


def confusion_figure(scores: Scores) -> figure:
    """How many test images of each class (row) the linear probe takes for each class (column)."""
    chosen = shown_classes(scores)
    names = [scores.classes[i] for i in chosen]
    counts = scores.confusion[np.ix_(chosen, chosen)]
    totals = np.maximum(scores.confusion.sum(1)[chosen], 1)[:, None]
    rows, columns = (part.ravel() for part in np.indices(counts.shape))
    flat, share = counts.ravel(), (counts / totals).ravel()
    plot = _figure(
        None,
        x_range=names,
        y_range=names[::-1],
        x_axis_location="above",
        x_axis_label="taken for (class)",
        y_axis_label="labelled (class)",
        aspect_ratio=1,
    )
    data = {
        "truth": [names[i] for i in rows],
        "taken": [names[i] for i in columns],
        "count": flat,
        "percent": 100 * share,
        "alpha": np.where(flat > 0, 0.06 + 0.94 * share, 0),
        "colour": [COLOURS[0] if i == j else COLOURS[1] for i, j in zip(rows, columns, strict=True)],
        "total": totals.ravel()[rows],
    }
    cells = plot.rect(
        "taken",
        "truth",
        1,
        1,
        source=ColumnDataSource(data),
        fill_color="colour",
        fill_alpha="alpha",
        line_color="#88888833",
    )
    _hover(plot, [cells], "@truth taken for @taken", ("images", "@count of @total (@percent{0.0} %)"))
    if len(names) <= MOST_COUNTS:
        _write_counts(plot, data, flat, share)
    plot.grid.grid_line_color = None
    plot.xaxis.major_label_orientation = 0 if max(map(len, names)) <= 3 else 0.9
    return plot


def _write_counts(plot: figure, data: dict[str, Any], flat: np.ndarray, share: np.ndarray) -> None:
    """Numbers in the cells: white on strong ones; on weak ones in the page's ink, which page.js sets by the name."""
    texts = np.array([str(n) if n else "" for n in flat])
    for name, strong in (("ink", share < 0.5), ("white", share >= 0.5)):
        kept = np.flatnonzero(strong & (flat > 0))
        columns = {key: [data[key][i] for i in kept] for key in ("taken", "truth")} | {"text": texts[kept]}
        plot.text(
            "taken",
            "truth",
            "text",
            source=ColumnDataSource(columns),
            text_align="center",
            text_baseline="middle",
            text_font=FONT,
            text_font_size="12px",
            text_color="white" if name == "white" else "#333333",
            name=name,
        )


# -------------------------------------------------------------------------------------------------------- map


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
        plot = _figure(
            None,
            tools="pan,wheel_zoom,box_zoom,reset",
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
        _hover(plot, [dots], "@label", ("", "@id"), picture=picture)
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
    for name in classes:
        middle = np.median(points[[label == name for label in labels]], axis=0)
        plot.add_layout(
            Label(
                x=middle[0],
                y=middle[1],
                text=name,
                text_align="center",
                text_baseline="middle",
                text_font=FONT,
                text_font_size="13px",
                text_font_style="bold",
            )
        )


def _figure(height: int | None, tools: str = "", **options: Any) -> figure:
    """As wide as the page lets it; without a toolbar unless it has tools."""
    size = {} if height is None else {"height": height}
    return figure(
        sizing_mode="stretch_width",
        tools=tools,
        toolbar_location="above" if tools else None,
        **size,
        **options,
    )


def _hover(
    plot: figure, renderers: list[Any], head: str, *rows: tuple[str, str], mode: str = "mouse", picture: str = ""
) -> None:
    """What is shown of the point under the mouse: a picture, a bold line, and lines of name and value."""
    lines = "".join(f"<div><span style='color: #5c636d'>{name}</span> {value}</div>" for name, value in rows)
    html = f"<div style='max-width: 16rem; overflow-wrap: anywhere'>{picture}<div><b>{head}</b></div>{lines}</div>"
    plot.add_tools(HoverTool(renderers=renderers, tooltips=html, mode=mode))


def _tick(plot: figure, values: Sequence[int]) -> None:
    plot.xaxis.ticker = FixedTicker(ticks=list(values))
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
