"""The sections of a page: figures, and words on what they show and how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bokeh.plotting import figure

from byol.run import KNN_K, KNN_TEMPERATURE
from byol.serve.report.accuracies import accuracy_figures, confusion_figure, shown_classes
from byol.serve.report.curves import CURVES, POINTS, curve_figure, last_epoch
from byol.serve.report.explore import Exploration, Query
from byol.serve.report.maps import map_figures
from byol.serve.report.measure import DRAWS, Scores
from byol.serve.report.runs import Entry
from byol.serve.report.style import Stroke, class_colours, strokes


@dataclass(frozen=True)
class Report:
    """All that a page shows. `scores` is by entry name; `exploration` is by the encoder of the entry `explored`.

    `baselines`: the table of what that is measured beside (`byol.serve.report.accuracies`), empty without one.
    """

    entries: list[Entry]
    scores: dict[str, Scores] = field(default_factory=dict)
    exploration: Exploration | None = None
    explored: str = ""
    baselines: dict[str, Any] = field(default_factory=dict)

    @property
    def strokes(self) -> dict[str, Stroke]:
        """How each entry is drawn."""
        return dict(zip([entry.name for entry in self.entries], strokes(len(self.entries)), strict=True))

    @property
    def of_explored(self) -> str:
        """Whose features are shown, in words, where that is not plain."""
        return f" of {self.explored}" if len(self.entries) > 1 else ""


@dataclass(frozen=True)
class Panel:
    """A figure, its title, and how to read it. `wide`: it takes the full width."""

    name: str
    title: str
    reading: str
    plot: figure
    wide: bool = False


# ------------------------------------------------------------------------------------------------- training


def training(report: Report) -> list[Panel]:
    """The curves that the runs have."""
    strokes = report.strokes
    runs = [(entry.name, entry.run.records, strokes[entry.name]) for entry in report.entries if entry.run]
    end = last_epoch([records for _, records, _ in runs])
    drawn = [(curve, curve_figure(curve, runs, end)) for curve in CURVES]
    return [Panel(curve.key, curve.title, curve.reading, plot) for curve, plot in drawn if plot]


def training_note(entries: Sequence[Entry]) -> str:
    """What the curves are made of."""
    counts = [len(entry.run.records) for entry in entries if entry.run]
    note = f"{max(counts, default=0):,} lines of metrics" if len(counts) == 1 else f"{len(counts)} runs"
    if max(counts, default=0) > POINTS:
        note += f", of each at most {POINTS} lines drawn"
    return f"{note}. Loss is the mean since the line before; spread, rank and agreement are those of one batch."


# ------------------------------------------------------------------------------------------------- accuracy


def accuracy(report: Report) -> list[Panel]:
    """Accuracies of all encoders, and the confusion of the one that is explored."""
    if not report.scores:
        return []
    named = [(name, scores, report.strokes[name]) for name, scores in report.scores.items()]
    explored = report.scores[report.explored]
    knn, few = accuracy_figures(named)
    shown, classes = len(shown_classes(explored)), len(explored.classes)
    part = "" if shown == classes else f"The {shown} of {classes} classes with most errors. "
    return [
        Panel(
            "knn",
            "kNN over k",
            "A good encoder is right with few neighbours and stays so with many. A curve that falls early means that "
            "images have few relatives of their class in the training set.",
            knn,
        ),
        Panel(
            "few",
            "Linear probe over labels",
            f"Mean and deviation of {DRAWS} random draws; the square is all labels. The flatter the curve, the more "
            "the encoder knew before any label was given.",
            few,
        ),
        Panel(
            "confusion",
            f"Confusion of the linear probe{report.of_explored}",
            f"{part}Each row is a class: blue cells are right, orange ones errors, stronger with their share of the "
            "row. Errors should pair classes that look alike; one full column means that everything is taken for one "
            "class.",
            confusion_figure(explored),
            wide=True,
        ),
    ]


def accuracy_note(report: Report) -> str:
    """What was measured on what."""
    if not report.scores:
        return ""
    scores = report.scores[report.explored]
    commonest = scores.confusion.sum(1).max() / scores.n_test
    sets = f"{scores.n_test:,} test images; {scores.n_train:,} labelled training images"
    last = "Nothing was chosen on the test images."
    if scores.one_set:
        sets = f"{scores.n_test:,} labelled images"
        last = (
            "Training and test set are the same images: kNN compares each with all the others, but the linear probe "
            "and its confusion are of images that it learned from, and say nothing about others."
        )
    return (
        f"Top-1 on {sets}, {len(scores.classes)} classes. Always naming the commonest class would be right for "
        f"{percent(commonest)}. {last}"
    )


def percent(share: float) -> str:
    """A share, 0 to 1, for people."""
    return f"{100 * share:.1f} %"


# ------------------------------------------------------------------------------------------- neighbours, map


def neighbours_note(report: Report) -> str:
    """How many images are shown, of how many, and what the marks mean."""
    shown = report.exploration
    if shown is None:
        return ""
    if not shown.queries:
        return "Features files hold no pictures; give the images as --train and --test to see neighbours."
    count, k, bank = len(shown.queries), len(shown.queries[0].neighbours), shown.n_train - shown.one_set
    others = f"the {bank:,} others" if shown.one_set else f"{bank:,} training images"
    note = (
        f"{count:,} of {shown.n_test:,} test images, chosen at random, and to each its {k} nearest of {others} by the "
        f"features{report.of_explored}, each as its middle square. Good neighbours show the same thing, in another "
        "place or pose."
    )
    if legend(report):
        note += " A frame has the colour of its class."
    if shown.queries[0].predicted is None:
        return note
    wrong = sum(query.wrong for query in shown.queries)
    how = f"k = {min(KNN_K, bank)}, temperature {KNN_TEMPERATURE}"
    return f"{note} A dashed frame and a cross mark the {wrong} that kNN ({how}) takes for another class."


def buttons(report: Report) -> list[dict[str, Any]]:
    """The test images to choose from: picture, class, name for screen readers, and what kNN errs to."""
    queries = report.exploration.queries if report.exploration else []
    return [
        {
            "picture": q.picture,
            "label": q.label,
            "wrong": q.predicted if q.wrong else None,
            "name": f"{q.id}: {_said(q)}",
        }
        for q in queries
    ]


def _said(query: Query) -> str:
    label = "No label" if query.label is None else f"Labelled {query.label}"
    return label if query.predicted is None else f"{label}, kNN says {query.predicted}"


READINGS = {
    "PCA": "The two directions of greatest variance. Islands of one colour: classes lie apart even in the plainest "
    "view. A single line or dot: collapse.",
    "UMAP": "Keeps neighbours together. Islands of one colour are groups that the encoder found without labels; sizes "
    "of islands and distances between them mean nothing.",
}


def maps(report: Report) -> list[Panel]:
    """The projections of the shown test images."""
    shown = report.exploration
    if shown is None:
        return []
    drawn = zip(shown.projections, map_figures(shown), strict=True)
    alone = len(shown.projections) == 1
    return [Panel(found.name, found.name, READINGS[found.name], plot, wide=alone) for found, plot in drawn]


def map_note(report: Report) -> str:
    """How many images are on the map, of how many, and what the colours mean."""
    shown = report.exploration
    if shown is None:
        return ""
    coloured = bool(legend(report))
    colours = "coloured by class" if coloured else "in one colour: there are no classes, or too many for colours"
    alone = "; choose a class to see it alone" if coloured else ""
    return (
        f"{len(shown.ids):,} of {shown.n_test:,} test images, chosen at random, placed by their "
        f"features{report.of_explored}, {colours}. Point at one to see it{alone}."
    )


def legend(report: Report) -> list[tuple[str, str, int]]:
    """Each class on the map, its colour, and how many of its images are there; none where there are no colours."""
    labels = [label for label in report.exploration.labels if label is not None] if report.exploration else []
    return [(name, colour, labels.count(name)) for name, colour in class_colours(sorted(set(labels))).items()]


def script_data(report: Report) -> dict[str, Any]:
    """What page.js reads."""
    shown = report.exploration
    if shown is None:
        return {"pictures": [], "queries": [], "colours": []}
    queries = [
        {
            "picture": query.picture,
            "id": query.id,
            "label": query.label,
            "said": _said(query),
            "neighbours": [
                {"picture": n.picture, "id": n.id, "label": n.label, "similarity": round(n.similarity, 4)}
                for n in query.neighbours
            ],
        }
        for query in shown.queries
    ]
    colours = [[name, colour] for name, colour, _ in legend(report)]
    return {"pictures": shown.pictures, "queries": queries, "colours": colours}
