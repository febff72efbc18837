"""The page: what was read and measured, in words, tables and figures, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from byol import __version__
from byol.serve.report import plots
from byol.serve.report.explore import Exploration, Query
from byol.serve.report.measure import DRAWS, TEMPERATURE, K, Scores
from byol.serve.report.pictures import views_picture
from byol.serve.report.provenance import provenance
from byol.serve.report.runs import Entry

MAX_BYTES = 5_000_000
VIEWS = 4  # runs whose views are shown


@dataclass(frozen=True)
class Report:
    """All that a page shows. `scores` is by entry name; `exploration` is by the encoder of the entry `explored`."""

    entries: list[Entry]
    scores: dict[str, Scores] = field(default_factory=dict)
    exploration: Exploration | None = None
    explored: str = ""


def render(report: Report) -> str:
    """The whole page. Raises `ValueError` when it would be larger than 5 MB, or a picture of views is damaged."""
    entries = report.entries
    figures: dict[str, Any] = {}
    strokes = dict(zip([entry.name for entry in entries], plots.strokes(len(entries)), strict=True))
    context = {
        "title": _title(entries),
        "lede": _lede(report),
        "strokes": [(name, *stroke) for name, stroke in strokes.items()],
        "tiles": _tiles(entries[0], report.scores.get(entries[0].name)) if len(entries) == 1 else [],
        "finals": _finals(report),
        "curves": _curves(report, strokes, figures),
        "training_note": _training_note(entries),
        "views": [(e.name, Markup(views_picture(e.run.views))) for e in entries if e.run and e.run.views][:VIEWS],
        "accuracy": _accuracy(report, strokes, figures),
        "explorer": _explorer(report),
        "maps": _maps(report, figures),
        "provenance": [provenance(entry) for entry in entries],
        "wide": {"confusion"},
        "version": __version__,
        "data": _data(report.exploration),
    }
    script, placed = components(figures, wrap_script=False, theme=plots.THEME) if figures else ("", {})
    context["sections"] = _sections(context)
    text = _template().render(
        context,
        plots={name: Markup(div) for name, div in placed.items()},
        script=Markup(script),
        bokeh=Markup("\n".join(Resources("inline", components=["bokeh"]).js_raw)) if figures else "",
        css=Markup(_asset("page.css")),
        js=Markup(_asset("page.js")),
    )
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ValueError(f"the page would have {size / 1e6:.1f} MB (at most {MAX_BYTES / 1e6:g}); compare fewer runs")
    return text


def _asset(name: str) -> str:
    return files("byol.serve.report").joinpath(name).read_text(encoding="utf-8")


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html"))


def _sections(context: dict[str, Any]) -> list[tuple[str, str]]:
    shown = [
        ("results", "Results", True),
        ("training", "Training", context["curves"] or context["views"]),
        ("accuracy", "Accuracy", context["accuracy"]),
        ("neighbours", "Neighbours", context["explorer"]),
        ("map", "Map", context["explorer"]),
        ("proof", "Proof and provenance", True),
    ]
    return [(anchor, name) for anchor, name, there in shown if there]


def _title(entries: Sequence[Entry]) -> str:
    return entries[0].name if len(entries) == 1 else f"{len(entries)} encoders compared"


def _lede(report: Report) -> str:
    entries = report.entries
    if len(entries) > 1:
        return ", ".join(entry.name for entry in entries) + "."
    run, bundle = entries[0].run, entries[0].bundle
    sentences = []
    if run:
        config, data, last = run.config, run.facts.get("data", {}), run.records[-1]
        images = f" on {data['images']:,} images of {data['name']}" if {"images", "name"} <= data.keys() else ""
        sentences.append(
            f"{config.get('arch', 'An encoder')} at {config.get('image_size', '?')} px, trained by BYOL without labels"
            f"{images}: {last['step']:,} steps, {last['epoch']:g} epochs."
        )
    elif bundle:
        manifest = bundle.manifest
        sentences.append(f"{manifest.architecture.name} at {manifest.image_size} px, {manifest.feature_dim} features.")
    scores = report.scores.get(entries[0].name)
    if scores:
        sentences.append(
            f"Evaluated through ONNX Runtime on {scores.n_test:,} test images, with {scores.n_train:,} labelled ones "
            "to learn from."
        )
    return " ".join(sentences)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _tiles(entry: Entry, scores: Scores | None) -> list[tuple[str, str, str]]:
    """(name, figure, what it means) of the figures that say most."""
    tiles = []
    if scores:
        tiles.append(("kNN", _percent(scores.knn_usual), f"top-1, k = {min(K, scores.n_train)}"))
        tiles.append(("Linear probe", _percent(scores.linear), f"top-1, all {scores.n_train:,} labels"))
        if scores.few:
            few = scores.few[0]
            count = f"{few.amount} label{'' if few.amount == 1 else 's'} a class"
            tiles.append((f"With {count}", _percent(few.mean), f"linear, \u00b1 {100 * few.deviation:.1f}"))
    if entry.run:
        last = entry.run.records[-1]
        if "knn_top1" in last and not scores:
            tiles.append(("kNN", _percent(last["knn_top1"]), "top-1 at the end of training"))
        for key, note in (("loss", "0 to 8"), ("std_ratio", "healthy: 0.5 to 1"), ("rankme", "effective directions")):
            if key in last:
                tiles.append((key, f"{last[key]:.3g}", note))
    if entry.bundle:
        parities = [file.parity for file in entry.bundle.manifest.files.values() if file.parity]
        worst = max(parity.max_relative_error for parity in parities)
        tiles.append(("Parity", f"{worst:.1e}", "largest relative error"))
    return tiles


def _finals(report: Report) -> dict[str, Any]:
    """The table of a comparison: the last value of each metric, and the accuracies."""
    keys = [("loss", "{:.3f}"), ("std_ratio", "{:.3f}"), ("rankme", "{:.1f}"), ("cosine", "{:.3f}")]
    head = ["encoder", "steps", *(key for key, _ in keys), "kNN in training (%)"]
    head += ["kNN (%)", "linear (%)", "1 label a class (%)"] if report.scores else []
    rows = []
    for entry in report.entries:
        last: dict[str, float] = entry.run.records[-1] if entry.run else {}
        training = entry.bundle.manifest.training if entry.bundle else None
        steps = last.get("step", training.steps if training else None)
        row = [entry.name, "\u2013" if steps is None else f"{steps:,}"]
        row += [shape.format(last[key]) if key in last else "\u2013" for key, shape in keys]
        row.append(f"{100 * last['knn_top1']:.1f}" if "knn_top1" in last else "\u2013")
        scores = report.scores.get(entry.name)
        if report.scores:
            row += _score_cells(scores) if scores else ["\u2013"] * 3
        rows.append(row)
    reading = f"The last line of each run's metrics; kNN with k = {K} unless the training set is smaller. "
    return {"head": head, "rows": rows, "reading": reading + "A dash: not measured."}


def _score_cells(scores: Scores) -> list[str]:
    few = next((f for f in scores.few if f.amount == 1), None)
    first = f"{100 * few.mean:.1f} \u00b1 {100 * few.deviation:.1f}" if few else "\u2013"
    return [f"{100 * scores.knn_usual:.1f}", f"{100 * scores.linear:.1f}", first]


# ------------------------------------------------------------------------------------------------- sections


def _curves(
    report: Report, strokes: dict[str, tuple[str, str]], figures: dict[str, Any]
) -> list[tuple[str, plots.Curve]]:
    runs = [(entry.name, entry.run.records, strokes[entry.name]) for entry in report.entries if entry.run]
    shown = []
    for curve in plots.CURVES:
        plot = plots.curve_figure(curve, runs)
        if plot:
            figures[curve.key] = plot
            shown.append((curve.key, curve))
    return shown


def _training_note(entries: Sequence[Entry]) -> str:
    counts = [len(entry.run.records) for entry in entries if entry.run]
    most = max(counts, default=0)
    note = f"{most:,} lines of metrics" if len(counts) == 1 else f"{len(counts)} runs"
    if most > plots.POINTS:
        note += f", of each run at most {plots.POINTS} drawn"
    return f"{note}. Loss is the mean since the line before; spread, rank and agreement are those of one batch."


def _accuracy(report: Report, strokes: dict[str, tuple[str, str]], figures: dict[str, Any]) -> dict[str, str] | None:
    if not report.scores:
        return None
    named = [(name, scores, strokes[name]) for name, scores in report.scores.items()]
    figures["knn"], figures["few"] = plots.accuracy_figures(named)
    explored = report.scores[report.explored]
    figures["confusion"] = plots.confusion_figure(explored)
    chance = explored.confusion.sum(1).max() / explored.n_test
    shown, classes = len(plots.shown_classes(explored)), len(explored.classes)
    part = "" if shown == classes else f"The {shown} of {classes} classes with most errors. "
    return {
        "note": f"Top-1 on {explored.n_test:,} test images; {explored.n_train:,} labelled training images, "
        f"{classes} classes. Always naming the commonest class would be right for {_percent(chance)}. Nothing was "
        "chosen on the test images.",
        "few_reading": f"Mean and deviation of {DRAWS} random draws; the square is all labels. The flatter the curve, "
        "the more the encoder knew before any label was given.",
        "of": f" of {report.explored}" if len(report.entries) > 1 else "",
        "confusion_reading": part
        + "Each row is a class; blue cells on the diagonal are right, orange ones are errors, "
        "stronger with their share of the row. Errors should pair classes that look alike; a full orange column means "
        "that everything is taken for one class.",
    }


def _explorer(report: Report) -> dict[str, Any] | None:
    shown = report.exploration
    if shown is None:
        return None
    of = f" by the features of {report.explored}" if len(report.entries) > 1 else ""
    if not shown.queries:
        note = "Features files hold no pictures; give the images as --train and --test to see neighbours."
    else:
        k = len(shown.queries[0].neighbours)
        note = (
            f"{len(shown.queries)} of {shown.n_test:,} test images, chosen at random, and to each its {k} nearest of "
            f"{shown.n_train:,} training images{of}. Good neighbours show the same thing, in another place or pose."
        )
        note += _marks(shown)
    coloured = plots.class_colours(sorted({label for label in shown.labels if label is not None}))
    classes = "coloured by class" if coloured else "in one colour, as there are no labels, or too many for colours"
    return {
        "note": note,
        "queries": [_button(query) for query in shown.queries],
        "map_note": f"{len(shown.ids)} of {shown.n_test:,} test images, chosen at random, placed by their "
        f"features{of}, {classes}. Point at one to see it.",
    }


def _marks(shown: Exploration) -> str:
    if shown.queries[0].predicted is None:
        return ""
    wrong = sum(query.predicted != query.label for query in shown.queries)
    return f" A red dot marks the {wrong} that kNN (k = {min(K, shown.n_train)}, temperature {TEMPERATURE}) gets wrong."


def _button(query: Query) -> dict[str, Any]:
    wrong = query.predicted is not None and query.predicted != query.label
    return {"picture": query.picture, "wrong": wrong, "name": f"{query.id}: {_said(query)}"}


def _said(query: Query) -> str:
    label = "No label" if query.label is None else f"Labelled {query.label}"
    return label if query.predicted is None else f"{label}, kNN says {query.predicted}"


def _maps(report: Report, figures: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    if report.exploration is None:
        return []
    readings = {
        "PCA": "The two directions of greatest variance. Islands of one colour: classes lie apart even in the plainest "
        "view. A single line or dot: collapse.",
        "UMAP": "Keeps neighbours together. Islands of one colour are groups that the encoder found without "
        "labels; sizes of islands and distances between them mean nothing.",
    }
    shown = []
    drawn = plots.map_figures(report.exploration)
    for projection, plot in zip(report.exploration.projections, drawn, strict=True):
        figures[projection.name] = plot
        shown.append((projection.name, {"title": projection.name, "reading": readings[projection.name]}))
    return shown


def _data(shown: Exploration | None) -> dict[str, Any]:
    """What page.js reads."""
    if shown is None:
        return {"pictures": [], "queries": []}
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
    return {"pictures": shown.pictures, "queries": queries}
