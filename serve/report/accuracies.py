"""The figures of accuracy: kNN over k, linear probe over labels, confusion. Shapes: C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.models import ColumnDataSource, FixedTicker, NumeralTickFormatter, Range1d, Whisker
from bokeh.plotting import figure

from byol.serve.report.measure import DRAWS, Row, Scores
from byol.serve.report.style import COLOURS, FONT, Stroke, new_figure, short_names, show_on_hover

MOST_CLASSES = 30  # rows of a confusion matrix
MOST_COUNTS = 12  # classes up to which its cells carry their counts

Named = Sequence[tuple[str, Scores, Stroke]]


def accuracy_figures(scores: Named) -> tuple[figure, figure]:
    """kNN accuracy over k, and linear accuracy over labels a class, of named encoders on one scale."""
    percent = _percent_range(scores)
    return _knn_figure(scores, percent), _few_figure(scores, percent)


def _percent_range(scores: Named) -> Range1d:
    """From a multiple of 10 below all accuracies to one above."""
    values = [100 * value for _, s, _ in scores for value in (*s.knn.values(), s.linear)]
    values += [100 * (few.mean + sign * few.deviation) for _, s, _ in scores for few in s.few for sign in (-1, 1)]
    low, high = 10 * np.floor((min(values) - 1) / 10), 10 * np.ceil((max(values) + 1) / 10)
    return Range1d(max(0, low), min(102, high))


def _knn_figure(scores: Named, percent: Range1d) -> figure:
    plot = new_figure(
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
        show_on_hover(plot, [dots], "@name", ("top-1", "@top1{0.0} %"), ("k", "@k"))
    _tick(plot, sorted({k for _, entry, _ in scores for k in entry.knn}))
    return plot


def _few_figure(scores: Named, percent: Range1d) -> figure:
    plot = new_figure(
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
        show_on_hover(plot, [dots], "@name", ("top-1", "@said"), ("labelled images", "@images"))
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
    shown = list(short_names(names).values())
    counts = scores.confusion[np.ix_(chosen, chosen)]
    totals = np.maximum(scores.confusion.sum(1)[chosen], 1)[:, None]
    rows, columns = (part.ravel() for part in np.indices(counts.shape))
    flat, share = counts.ravel(), (counts / totals).ravel()
    plot = new_figure(
        None,
        x_range=shown,
        y_range=shown[::-1],
        x_axis_location="above",
        x_axis_label="taken for (class)",
        y_axis_label="labelled (class)",
        aspect_ratio=1,
    )
    data = {
        "row": [shown[i] for i in rows],
        "column": [shown[i] for i in columns],
        "truth": [names[i] for i in rows],
        "taken": [names[i] for i in columns],
        "count": flat,
        "percent": 100 * share,
        "alpha": np.where(flat > 0, 0.06 + 0.94 * share, 0),
        "colour": [COLOURS[0] if i == j else COLOURS[1] for i, j in zip(rows, columns, strict=True)],
        "total": totals.ravel()[rows],
    }
    cells = plot.rect(
        "column",
        "row",
        1,
        1,
        source=ColumnDataSource(data),
        fill_color="colour",
        fill_alpha="alpha",
        line_color="#88888833",
    )
    show_on_hover(plot, [cells], "@truth taken for @taken", ("images", "@count of @total (@percent{0.0} %)"))
    if len(names) <= MOST_COUNTS:
        _write_counts(plot, data, flat, share)
    plot.grid.visible = False
    plot.xaxis.major_label_orientation = 0 if max(map(len, shown)) <= 3 else 0.9
    return plot


def _write_counts(plot: figure, data: dict[str, Any], flat: np.ndarray, share: np.ndarray) -> None:
    """Numbers in the cells: white on strong ones; on weak ones in the page's ink, which page.js sets by the name."""
    texts = np.array([str(n) if n else "" for n in flat])
    for name, strong in (("ink", share < 0.5), ("white", share >= 0.5)):
        kept = np.flatnonzero(strong & (flat > 0))
        columns = {key: [data[key][i] for i in kept] for key in ("column", "row")} | {"text": texts[kept]}
        plot.text(
            "column",
            "row",
            "text",
            source=ColumnDataSource(columns),
            text_align="center",
            text_baseline="middle",
            text_font=value(FONT),  # a plain string would name a column
            text_font_size="12px",
            text_color="white" if name == "white" else "#333333",
            name=name,
        )


def baselines_table(rows: dict[str, Row]) -> dict[str, Any]:
    """The rows of an encoder and what it is measured beside, by name, as a table with its `reading`."""
    return {
        "head": ["", "kNN (%)", "linear (%)", "1 label a class (%)"],
        "rows": [[name, *row.cells] for name, row in rows.items()],
        "reading": "Training was worth what the encoder has more than its untrained self. Raw pixels (reduced, see the "
        "protocols) cost nothing; where they are ahead, the encoder does not help with these classes.",
    }


def _tick(plot: figure, values: Sequence[int]) -> None:
    plot.xaxis.ticker = FixedTicker(ticks=list(values))
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
