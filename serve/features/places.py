"""Where the images of features are in their source. Ids do not say it alone: they repeat where archives are joined."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np

from byol.images.source import ImageSource
from byol.images.surroundings import UnreadableImage
from byol.serve.features.read import Features
from byol.text import printable


def places_of(features: Features, source: ImageSource) -> np.ndarray:
    """The place in a source of each row's image, int64 (N,).

    Of features that were read, by their ids; rows that share one get its images in their order, where there are more
    of these those that can be read. Raises `ValueError` where an id is not there.
    """
    if features.places is not None:
        return features.places
    first: dict[str, int] = {}
    more: dict[str, deque[int]] = {}  # all places of an id that has several
    for place, name in enumerate(source.ids):
        if first.setdefault(name, place) != place:
            more.setdefault(name, deque([first[name]])).append(place)
    missing = [name for name in features.ids if name not in first]
    if missing:
        raise ValueError(
            f"{len(missing):,} images of {features.name} are not in {source.name} (first: {printable(missing[0])}); "
            "name the images that were extracted"
        )
    for name, rows in Counter(name for name in features.ids if name in more).items():
        if rows < len(more[name]):
            more[name] = deque(place for place in more[name] if _opens(source, place)) or more[name]
    return np.array([_next(more[name]) if name in more else first[name] for name in features.ids], np.int64)


def _next(places: deque[int]) -> int:
    return places.popleft() if len(places) > 1 else places[0]


def _opens(source: ImageSource, place: int) -> bool:
    try:
        source.open(place)
    except UnreadableImage:
        return False
    return True
