"""The curves of training: each metric over epochs, of one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import BoxAnnotation, ColumnDataSource, Range1d, Span
from bokeh.plotting import figure

from byol.run import COLLAPSED_RANK, COLLAPSED_STD_RATIO, HEALTHY_STD_RATIO
from byol.serve.report.runs import Record
from byol.serve.report.style import Stroke, new_figure, show_on_hover

POINTS = 600  # of a curve
FEW_POINTS = 30  # up to which a curve shows them


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
        "std_ratio (1: even, 0: a point)",
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


def thinned(records: Sequence[Record]) -> list[Record]:
    """At most 600 records, evenly spread, the first and the last among them."""
    rows = np.unique(np.linspace(0, len(records) - 1, min(POINTS, len(records)), dtype=int))
    return [records[row] for row in rows]


def last_epoch(runs: Sequence[list[Record]]) -> float:
    """Where the longest run ends."""
    return max((record["epoch"] for records in runs for record in records), default=1.0)


def curve_figure(curve: Curve, runs: Sequence[tuple[str, list[Record], Stroke]], end: float) -> figure | None:
    """One metric of named runs over epochs up to `end`; None when no run has it."""
    plot = new_figure(
        230, x_range=Range1d(0, 1.02 * end), x_axis_label="epoch (passes over the images)", y_axis_label=curve.axis
    )
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
    show_on_hover(plot, lines, "@name", (curve.key, f"@value{{0.[0000]}}{unit}"), ("step", "@step{0,0}"), mode="vline")
    _mark_collapse(plot, curve.key)
    return plot


def _mark_collapse(plot: figure, key: str) -> None:
    limit = {"std_ratio": COLLAPSED_STD_RATIO, "rankme": COLLAPSED_RANK}.get(key)
    if limit is None:
        return
    plot.add_layout(Span(location=limit, dimension="width", line_color="#d9534f", line_width=1.5, line_dash=[4, 3]))
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
