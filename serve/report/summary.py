"""The top of a page: title, one sentence, the key figures; for several encoders, a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from byol.bundle.manifest import ENCODER
from byol.run import KNN_K
from byol.serve.report.curves import knn_error
from byol.serve.report.measure import Scores
from byol.serve.report.runs import Entry, Record, Run
from byol.serve.report.sections import Report, percent


def title(entries: Sequence[Entry]) -> str:
    """The encoder's name, or how many there are."""
    return entries[0].name if len(entries) == 1 else f"{len(entries)} encoders compared"


def lede(report: Report) -> str:
    """What the encoder is, and what it was trained and measured on; for several, their names."""
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
            f"{images}: {_steps(run)} steps, {last['epoch']:.4g} epochs."
        )
        if run.unfinished:
            sentences.append("The run was stopped early, or is still running.")
        if entries[0].bundle_step:
            sentences.append(f"The bundle holds {entries[0].bundle_step}.")
    elif bundle:
        manifest = bundle.manifest
        tuning = manifest.finetuning
        tuned = f", fine-tuned with the labels of {tuning.images:,} images of {tuning.data}" if tuning else ""
        tuned = ", untrained" if manifest.untrained_seed is not None else tuned
        sentences.append(
            f"{manifest.architecture.name} at {manifest.image_size} px, {manifest.feature_dim} features{tuned}."
        )
    scores = report.scores.get(entries[0].name)
    if scores:
        sets = f"{scores.n_test:,} test images, with {scores.n_train:,} labelled ones to learn from"
        sets = f"{scores.n_test:,} labelled images, training and test set in one" if scores.one_set else sets
        sentences.append(f"Evaluated through ONNX Runtime on {sets}.")
    return " ".join(sentences)


def tiles(report: Report) -> list[tuple[str, str, str]]:
    """(name, figure, what it means) of one encoder's key figures; none for several."""
    if len(report.entries) > 1:
        return []
    entry = report.entries[0]
    scores = report.scores.get(entry.name)
    tiles = []
    if scores:
        alone, learned = (", leave one out", "on what it learned") if scores.one_set else ("", "all {:,} labels")
        tiles.append(("kNN", percent(scores.knn_usual), f"top-1, k = {scores.usual_k}{alone}"))
        tiles.append(("Linear probe", percent(scores.linear), f"top-1, {learned.format(scores.n_train)}"))
        if scores.few:
            few = scores.few[0]
            count = f"{few.amount} label{'' if few.amount == 1 else 's'} a class"
            tiles.append((f"With {count}", percent(few.mean), f"linear, \u00b1 {100 * few.deviation:.1f}"))
    if entry.run:
        last = entry.run.records[-1]
        knn = entry.run.last_knn
        if knn and not scores:
            error = knn_error(knn)
            spread = "" if error is None else f", \u00b1 {100 * error:.1f}"
            tiles.append(("kNN", percent(knn["knn_top1"]), f"top-1 {_when(entry.run, knn)}{spread}"))
        named = (("Loss", "loss", "0 to 8"), ("Spread", "std_ratio", "0 to 1"), ("Rank", "rankme", "directions"))
        for name, key, note in named:
            if key in last:
                tiles.append((name, f"{last[key]:.3g}", note if key == "loss" else f"{key}, {note}"))
    if entry.bundle:
        parity = entry.bundle.manifest.files[ENCODER].parity
        assert parity is not None  # the manifest's own check
        tiles.append(("Parity", f"{parity.max_relative_error:.1e}", "largest relative error"))
    return tiles


def finals(report: Report) -> dict[str, Any]:
    """The table of a comparison: the last value of each metric, and the accuracies."""
    keys = [("loss", "{:.3f}"), ("std_ratio", "{:.3f}"), ("rankme", "{:.1f}"), ("cosine", "{:.3f}")]
    head = ["encoder", *(["kNN (%)", "linear (%)", "1 label a class (%)"] if report.scores else [])]
    head += ["kNN in training (%)", "steps", *(key for key, _ in keys)]
    rows = []
    for entry in report.entries:
        last: dict[str, float] = entry.run.records[-1] if entry.run else {}
        training = entry.bundle.manifest.training if entry.bundle else None
        own = f"{training.steps:,}" if training else "\u2013"
        exported = f" (bundle: {entry.bundle_step})" if entry.bundle_step else ""
        scores = report.scores.get(entry.name)
        row = [entry.name]
        if report.scores:
            row += _score_cells(scores) if scores else ["\u2013"] * 3
        knn = entry.run.last_knn if entry.run else None
        early = f" ({_when(entry.run, knn)})" if entry.run and knn and knn["step"] < last["step"] else ""
        row.append(f"{100 * knn['knn_top1']:.1f}{early}" if knn else "\u2013")
        row.append(f"{_steps(entry.run)}{exported}" if entry.run else own)
        row += [shape.format(last[key]) if key in last else "\u2013" for key, shape in keys]
        rows.append(row)
    reading = f"The last line of each run's metrics; kNN with k = {KNN_K} unless the training set is smaller. "
    return {"head": head, "rows": rows, "reading": reading + "A dash: not measured."}


def _steps(run: Run) -> str:
    """How many steps a run took, and of how many if it did not finish."""
    done = f"{run.records[-1]['step']:,}"
    return f"{done} of {run.planned:,}" if run.unfinished else done


def _when(run: Run, record: Record) -> str:
    """When a line of metrics was written."""
    if record is run.records[-1] and not run.unfinished:
        return "at the end of training"
    return f"at epoch {record['epoch']:g}"


def _score_cells(scores: Scores) -> list[str]:
    return scores.row.cells
