"""The semi-supervised protocol (paper section 4): draw labels, choose settings on a part of them, fit again, score.

Nothing is chosen on the test set. Finished fits are in `metrics.jsonl`, so an interrupted sweep can be resumed.
Shapes: N images, S the encoder's image size.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.bundle.manifest import Finetuning
from byol.bundle.measured import Head
from byol.encoders.build import build_encoder
from byol.encoders.pretrained import Pretrained
from byol.finetuning.checkpoint import save_finetuned
from byol.finetuning.tuner import Classifier, FinetuneConfig, LabelledImages, Scores, Trial, Tuner
from byol.images.cache import DecodedCache
from byol.images.decode import Preprocess
from byol.images.labels import require_known, require_labels, require_nameable
from byol.images.location import Location
from byol.images.open import open_source
from byol.images.source import ImageSource, Skipped
from byol.images.splits import draw, holdout
from byol.run import FINETUNE
from byol.text import on_one_line
from byol.training.begun import identity
from byol.training.data.decoded import Advance, canvas_side, load_canvases, load_preprocessed
from byol.training.data.intake import ImageTensor
from byol.training.run_folder import RunFolder

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Sets:
    """The data of a fine-tuning: the images of all draws, the rows (int64) of each draw, and the test set.

    `names` are the classes in the order of the logits; `facts` name the sets.
    """

    names: list[str]
    labelled: LabelledImages
    draws: list[np.ndarray]
    test: tuple[Tensor, Tensor] | None  # uint8 (N, S, S, 3), int64 (N,)
    facts: dict[str, Any]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Chosen:
    """The images of a fine-tuning, none of them decoded: the rows of `source` for each draw, and the test set."""

    source: ImageSource
    draws: list[np.ndarray]
    test: ImageSource | None
    facts: dict[str, Any]


def choose_images(config: FinetuneConfig, data: Location, test: Location | None) -> Chosen:
    """Draw the labelled images and refuse what can be refused before the work.

    Raises `ValueError` for images without labels, too few of a class, classes that no bundle can name, and test classes
    that `data` lacks.
    """
    source = open_source(data)
    labels = np.array(require_labels(source))
    require_nameable(source)
    draws = [draw(labels, config.labels, seed) for seed in range(config.draws)]
    other = open_source(test) if test else None
    if other:
        require_labels(other, least_classes=1)
        require_known(source, other)
    facts = {"data": _facts(data, source), "test": _facts(test, other) if test and other else None}
    return Chosen(source, draws, other, facts)


def read_sets(chosen: Chosen, preprocess: Preprocess, advance: Advance | None = None) -> Sets:
    """Decode what was chosen. `preprocess`: the encoder's own, as its bundle will have it, for all that is scored on.

    Raises `ValueError` when none of a class, or of the test set, can be read.
    """
    source, other, draws = chosen.source, chosen.test, chosen.draws
    labels = np.array(source.labels[:])
    rows = np.unique(np.concatenate(draws))  # (n,) of the source
    part, names = source.subset(rows), source.classes
    canvases = load_canvases(part, canvas_side(part, preprocess.crop), advance, DecodedCache())
    preprocessed = load_preprocessed(part, preprocess, DecodedCache(), advance)
    if not np.array_equal(canvases.indices, preprocessed.indices):
        raise ValueError(f"{source.name} changed while being read; run the command again")
    readable = rows[canvases.indices]
    for drawn in draws:
        _require_every_class(names, labels[np.intersect1d(drawn, readable)], source.name, canvases.skipped)
    scored = load_preprocessed(other, preprocess, DecodedCache(), advance) if other else None
    return Sets(
        names,
        LabelledImages(canvases, preprocessed, _numbers(names, part, canvases)),
        [np.flatnonzero(np.isin(readable, drawn)) for drawn in draws],
        (scored.pixels, _numbers(names, other, scored)) if other and scored else None,
        chosen.facts,
        [*canvases.skipped, *(scored.skipped if scored else [])],
    )


def _require_every_class(names: list[str], readable: np.ndarray, data: str, skipped: list[Skipped]) -> None:
    """Raise `ValueError` when a class has no image among the readable ones of a draw, given by their labels."""
    lost = sorted(set(names) - set(readable.tolist()))
    if lost:
        first = f" (first: {skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise ValueError(
            f"{data}: none of the images drawn from class {lost[0]} can be read{first}; replace or remove them"
        )


def _numbers(names: list[str], source: ImageSource, images: ImageTensor) -> Tensor:
    """The class of each readable image, int64 (N,)."""
    place = {name: number for number, name in enumerate(names)}
    return torch.tensor([place[label or ""] for label in source.labels.take(images.indices)])


def _facts(location: Location, source: ImageSource) -> dict[str, Any]:
    return {**identity(location, source), "images": len(source)}


class Sweep:
    """The fine-tunings of one folder: for each draw the trials of the sweep, then the final fit.

    `report` gets each new line of `metrics.jsonl`.
    """

    def __init__(self, tuner: Tuner, source: Pretrained, sets: Sets, run: RunFolder, report: Report):
        self.tuner, self.source, self.sets, self.run, self.report = tuner, source, sets, run, report
        self.config = tuner.config
        self.trials = [Trial(*pair) for pair in product(sorted(self.config.lr), sorted(self.config.epochs))]
        self._records = {_key(record): record for record in run.metrics(FINETUNE)}

    def fit(self) -> list[dict[str, Any]]:
        """The final line of every draw; the classifier of the first draw is saved as `last.safetensors`."""
        return [self._final(number, self._chosen(number, rows)) for number, rows in enumerate(self.sets.draws)]

    def _chosen(self, number: int, rows: np.ndarray) -> Trial:
        """The settings for a draw: those of the best accuracy on a stratified fifth of its labelled images.

        Ties go to the lowest rate, then the fewest epochs, which change the encoder least. The first settings are also
        taken if no class has two labelled images, as nothing can be held out then.
        """
        held = holdout(self.sets.labelled.classes.numpy()[rows], seed=number)
        if len(self.trials) == 1 or not held.any():
            return self.trials[0]
        accuracies = [self._tried(number, rows[~held], rows[held], trial)["top1"] for trial in self.trials]
        return self.trials[int(np.argmax(accuracies))]  # the first of equals

    def _tried(self, number: int, rows: np.ndarray, held: np.ndarray, trial: Trial) -> dict[str, Any]:
        known = self._records.get((number, "trial", trial))
        if known:
            return known
        labelled = self.sets.labelled
        record, model = self._fitted(number, "trial", rows, trial)
        scores = self.tuner.score(model, labelled.preprocessed.pixels[held], labelled.classes[held])
        return self._log(record, len(held), scores)

    def _final(self, number: int, trial: Trial) -> dict[str, Any]:
        """Fit on all labelled images of a draw and score on the test set, where there is one."""
        known = self._records.get((number, "final", trial))
        if known and bool(known["scored"]) == bool(self.sets.test):
            return known
        record, model = self._fitted(number, "final", self.sets.draws[number], trial)
        scores = self.tuner.score(model, *self.sets.test) if self.sets.test else None
        if number == 0:
            self._save(model, record, scores)
        return self._log(record, len(self.sets.test[1]) if self.sets.test else 0, scores)

    def _fitted(self, number: int, part: str, rows: np.ndarray, trial: Trial) -> tuple[dict[str, Any], Classifier]:
        start = time.perf_counter()
        model = self._fresh(number)
        loss = self.tuner.fit(model, self.sets.labelled, rows, trial, seed=number)
        seconds = round(time.perf_counter() - start, 3)
        record = {"draw": number, "part": part, **asdict(trial), "images": len(rows), "seconds": seconds}
        record["loss"] = loss if math.isfinite(loss) else None  # JSON knows finite numbers only
        return record, model

    def _fresh(self, seed: int) -> Classifier:
        """A new classifier: the encoder as it was handed over, or with random weights; a random linear layer."""
        torch.manual_seed(seed)
        source = self.source
        if self.config.from_scratch:
            encoder = build_encoder(source.arch, source.stem, source.image_size)
        else:
            encoder = copy.deepcopy(source.encoder)
        return Classifier(encoder, len(self.sets.names))

    def _log(self, record: dict[str, Any], images: int, scores: Scores | None) -> dict[str, Any]:
        whole = {**record, "scored": images, **(asdict(scores) if scores else {})}
        self.run.log(whole)
        self.report(whole)
        return whole

    def _save(self, model: Classifier, record: dict[str, Any], scores: Scores | None) -> None:
        facts, scratch = self.sets.facts, self.config.from_scratch
        data = on_one_line(facts["data"]["name"])  # a manifest allows no control characters
        tuning = Finetuning(data, record["images"], record["lr"], record["epochs"], scratch)
        head = Head(tuple(self.sets.names), None, data, record["images"])
        if scores and self.sets.test:
            test = on_one_line(facts["test"]["name"])
            head = replace(head, test=test, n_test=len(self.sets.test[1]), top1=scores.top1)
        source = self.source
        if scratch:
            source = replace(source, training=None, origin=None, untrained_seed=None)
        save_finetuned(self.run.last, model, replace(source, finetuning=tuning, head=head))


def _key(record: dict[str, Any]) -> tuple[int, str, Trial]:
    return record["draw"], record["part"], Trial(record["lr"], record["epochs"])
