"""A few hundred test images to look at: their place on a map of the features, their nearest training images.

Shapes: M shown images, Q queries, K neighbours, D features.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from PIL import Image

from byol.console import note
from byol.images.source import ImageSource
from byol.run import KNN_K, KNN_TEMPERATURE
from byol.serve.evaluate.knn import KNNClassifier, Neighbours, unit_rows, without
from byol.serve.evaluate.sets import Evaluation
from byol.serve.features.places import places_of
from byol.serve.features.read import Features
from byol.serve.report.measure import shown_names
from byol.serve.report.pictures import SIDES, thumbnails
from byol.text import first_line, on_one_line

SEED = 0
SHOWN, QUERIES, NEIGHBOURS = 400, 48, 6  # at most 400 + 48 * 6 = 688 pictures
UMAP_NEIGHBOURS = 15


@dataclass(frozen=True)
class Projection:
    """A map: `points` float (M, 2), and what its two axes are."""

    name: str
    axes: tuple[str, str]
    points: np.ndarray


@dataclass(frozen=True)
class Found:
    """A training image near a query: picture (its place in `Exploration.pictures`), id, label, cosine similarity."""

    picture: int
    id: str
    label: str | None
    similarity: float


@dataclass(frozen=True)
class Query:
    """A test image, what kNN takes it for (None without labels), and its nearest training images."""

    picture: int
    id: str
    label: str | None
    predicted: str | None
    neighbours: list[Found]

    @property
    def wrong(self) -> bool:
        """Whether kNN takes it for another class."""
        return self.predicted is not None and self.predicted != self.label


@dataclass(frozen=True)
class Exploration:
    """What is shown of `n_test` test images. The first M `pictures` are those of the map; none from features files.

    `one_set`: these are the training images, each compared with all the others.
    """

    ids: list[str]
    labels: list[str | None]
    projections: list[Projection]
    queries: list[Query]
    pictures: list[str]
    n_train: int
    n_test: int
    one_set: bool = False


def explore(data: Evaluation, device: str) -> Exploration:
    """Choose test images at random (seeded), sort them by class, and find their neighbours.

    Where one of the two sets is of a features file there are no pictures, and so no queries.
    """
    train, test = data.sources
    shown = _chosen(data.test)
    classes = {label for part in (data.train, data.test) for label in part.labels if label is not None}
    names: dict[str | None, str] = dict(shown_names(classes).items())
    labels = [names.get(data.test.labels[row]) for row in shown]
    pictures: list[str] = []
    queries: list[Query] = []
    if train is not None and test is not None:
        asked = np.unique(np.linspace(0, len(shown) - 1, min(QUERIES, len(shown)), dtype=int))
        similarity, rows = _nearest(data, shown[asked], device)
        bank = np.unique(rows)
        tiles = {*asked.tolist(), *range(len(shown), len(shown) + len(bank))}
        pictures = thumbnails(chain(_images(test, data.test, shown), _images(train, data.train, bank)), tiles)
        place = {int(row): len(shown) + i for i, row in enumerate(bank)}
        predicted = _predicted(data, shown[asked], device)
        for i, number in enumerate(asked.tolist()):
            found = [
                Found(place[row], on_one_line(data.train.ids[row]), names.get(data.train.labels[row]), float(value))
                for row, value in zip(rows[i].tolist(), similarity[i], strict=True)
            ]
            name = on_one_line(data.test.ids[shown[number]])
            queries.append(Query(number, name, labels[number], names.get(predicted[i]), found))
    ids = [on_one_line(data.test.ids[row]) for row in shown]
    maps = projections(data.test.x[shown])
    return Exploration(ids, labels, maps, queries, pictures, len(data.train), len(data.test), data.one_set)


def _chosen(features: Features) -> np.ndarray:
    """Rows (M,) of at most 400 images, drawn without replacement, in the order of their classes and ids."""
    rows = np.random.default_rng(SEED).choice(len(features), min(SHOWN, len(features)), replace=False)
    order = sorted(rows.tolist(), key=lambda row: (features.labels[row] or "", features.ids[row]))
    return np.array(order)


def _images(source: ImageSource, features: Features, rows: np.ndarray) -> Iterator[Image.Image]:
    """The images of some rows of features."""
    return (source.open(place, 2 * SIDES[0][0]) for place in places_of(features, source)[rows].tolist())


def _nearest(data: Evaluation, rows: np.ndarray, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and training rows (Q, K) of some test images (Q,), nearest first; of one set, without itself."""
    search = Neighbours(data.train.x, min(NEIGHBOURS, data.bank) + data.one_set, device)
    similarity, found = search(data.test.x[rows])
    return without(similarity, found, found == rows[:, None]) if data.one_set else (similarity, found)


def _predicted(data: Evaluation, rows: np.ndarray, device: str) -> list[str | None]:
    if not data.labelled:
        return [None] * len(rows)
    k, x = min(KNN_K, data.bank) + data.one_set, data.test.x[rows]
    classifier = KNNClassifier(k, KNN_TEMPERATURE, device).fit(data.train.x, data.y_train)
    return list(map(str, classifier.predict_left_out(x, rows) if data.one_set else classifier.predict(x)))


# ------------------------------------------------------------------------------------------------- projections


def projections(x: np.ndarray) -> list[Projection]:
    """Maps of features (M, D): PCA, and UMAP where umap-learn is installed and there are enough images for it.

    Says so where it is installed and does not work.
    """
    unit = unit_rows(x)  # cosine similarity is what kNN compares by
    maps = [principal_components(unit)]
    if importlib.util.find_spec("umap") and len(unit) > UMAP_NEIGHBOURS:
        try:
            maps.append(_umap(unit))
        except Exception as error:  # another package called umap, no NumPy for numba, no folder for its cache
            note(f"UMAP is left out: umap-learn does not work here: {first_line(error)}")
    return maps


def principal_components(x: np.ndarray) -> Projection:
    """The two directions in which rows (M, D) vary most, by singular value decomposition of the centred rows.

    Signs are chosen so that each direction's largest entry is positive. With one row or one column the second is zero.
    """
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    left, values, directions = np.linalg.svd(centred, full_matrices=False)
    largest = directions[np.arange(len(directions)), np.abs(directions).argmax(1)]
    scores = left * values * np.where(largest < 0, -1, 1)  # (M, min(M, D))
    points = np.zeros((len(x), 2))
    points[:, : scores.shape[1]] = scores[:, :2]
    total = (values**2).sum()
    shares = [*(values[:2] ** 2 / total if total > 0 else values[:2]), 0.0][:2]
    first, second = (f"principal component {i} ({share:.0%} of the variance)" for i, share in enumerate(shares, 1))
    return Projection("PCA", (first, second), points)


def _umap(x: np.ndarray) -> Projection:
    from umap import UMAP

    # One thread: with a seed UMAP uses no more, and warns when it was allowed to.
    model = UMAP(n_neighbors=UMAP_NEIGHBOURS, metric="cosine", random_state=SEED, n_jobs=1)
    points = np.asarray(model.fit_transform(x), np.float64)
    return Projection("UMAP", ("UMAP 1 (no unit)", "UMAP 2 (no unit)"), points)
