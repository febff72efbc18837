"""The curves of training: each metric over epochs, of one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import BoxAnnotation, ColumnDataSource, Range1d, Span
from bokeh.plotting import figure

from byol.run import COLLAPSED_RANK, COLLAPSED_STD_RATIO, HEALTHY_STD_RATIO, standard_error
from byol.serve.report.runs import Record
from byol.serve.report.style import Stroke, new_figure, show_on_hover

POINTS = 600  # of a curve
KNN = "knn_top1"
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
        KNN,
        "kNN while training",
        "top-1 accuracy (%)",
        "Should rise with training; at or falling to chance means that nothing useful is learned. The axis starts at "
        "chance, and the band is one standard error, where the run says of how many classes and images; else at 0.",
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
    """Where the longest run ends; 1 where none has begun its first epoch, as an axis must not be empty."""
    return max((record["epoch"] for records in runs for record in records), default=0.0) or 1.0


def curve_figure(curve: Curve, runs: Sequence[tuple[str, list[Record], Stroke]], end: float) -> figure | None:
    """One metric of named runs over epochs up to `end`; None when no run has it."""
    plot = new_figure(
        230, x_range=Range1d(0, 1.02 * end), x_axis_label="epoch (passes over the images)", y_axis_label=curve.axis
    )
    scale = 100 if curve.key == KNN else 1
    lines, measured = [], []
    for name, records, (colour, dash) in runs:
        kept = thinned([record for record in records if curve.key in record])
        if not kept:
            continue
        columns: dict[str, Any] = {key: np.array([record[key] for record in kept]) for key in ("epoch", "step")}
        values = scale * np.array([record[curve.key] for record in kept])
        columns |= {"value": values, "name": [name] * len(kept)}
        if curve.key == KNN:
            columns["said"] = [said_knn(record) for record in kept]
            measured += kept
            _draw_band(plot, columns["epoch"], kept, colour)
        source = ColumnDataSource(columns)
        lines.append(plot.line("epoch", "value", source=source, color=colour, line_dash=dash, line_width=2))
        if len(kept) <= FEW_POINTS:
            plot.scatter("epoch", "value", source=source, color=colour, size=5)
    if not lines:
        return None
    shown = "@said" if curve.key == KNN else "@value{0.[0000]}"
    show_on_hover(plot, lines, "@name", (curve.key, shown), ("step", "@step{0,0}"), mode="vline")
    _mark_collapse(plot, curve.key)
    if curve.key == KNN:
        plot.y_range.start = 100 * lowest_knn(measured)
    return plot


def said_knn(record: Record) -> str:
    """A line's kNN accuracy in percent, with its standard error where that is known."""
    error = knn_error(record)
    return f"{100 * record[KNN]:.1f} %" if error is None else f"{100 * record[KNN]:.1f} \u00b1 {100 * error:.1f} %"


def knn_error(record: Record) -> float | None:
    """The standard error of a line's kNN accuracy; None where the line does not say on how many images it rests."""
    top1, queries = record[KNN], record.get("knn_queries", 0)
    return standard_error(top1, int(queries)) if queries >= 1 and 0 <= top1 <= 1 else None


def lowest_knn(records: Sequence[Record]) -> float:
    """Where an axis of kNN accuracies starts: at chance or, where one falls below, there; at 0 if chance is unknown."""
    classes = [record.get("knn_classes", 0) for record in records]
    if min(classes) < 1:
        return 0.0
    reached = [record[KNN] - (knn_error(record) or 0) for record in records]
    return max(0.0, min(*reached, *(1 / count for count in classes)))


def _draw_band(plot: figure, epochs: np.ndarray, records: Sequence[Record], colour: str) -> None:
    """One standard error to each side, where it is known."""
    errors = np.array([knn_error(record) or 0 for record in records])
    values = np.array([record[KNN] for record in records])
    if errors.any():
        plot.varea(epochs, 100 * (values - errors), 100 * (values + errors), fill_color=colour, fill_alpha=0.18)


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
