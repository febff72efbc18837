"""What an interrupted search had found, in one file beside its output, so that the same command goes on from there."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np

from byol import outputs
from byol.files.atomic import atomic_file
from byol.files.npz import open_arrays
from byol.files.regular import open_regular
from byol.outputs import require_output
from byol.serve.duplicates.search import Found
from byol.serve.limits import MOST_PAIRS

SECONDS = 60.0  # of work that may be lost
HASHED_ROWS = 16_384
ARRAYS = ("leader", "twins", "a", "b", "cosine")


class Unfinished:
    """The file in which the search for `out` is kept while it runs; `key` says of which features it is."""

    def __init__(self, out: Path, key: str) -> None:
        self.path, self._key, self._saved = out.with_name(f"{out.name}.unfinished.npz"), key, time.monotonic()
        require_output(self.path, outputs.UNFINISHED)

    def load(self, known: int, count: int) -> Found | None:
        """What was found of `count` new images beside `known` ones; None where there is nothing, or of other features.

        Raises `OSError` when the file cannot be read.
        """
        if not self.path.exists():
            return None
        try:
            with open_regular(self.path) as stream, open_arrays(stream) as arrays:
                if str(arrays.read("key")) != self._key:
                    return None
                leader, twins, a, b, cosine = (arrays.read(name) for name in ARRAYS)
                found = Found(leader, twins, a, b, cosine, int(arrays.read("next")))
        except ValueError:  # damaged: begun anew
            return None
        return found if _fits(found, known, count) else None

    def pause(self, found: Found) -> None:
        """Keep what is found if the last time is a minute ago."""
        if time.monotonic() - self._saved >= SECONDS:
            self.save(found)

    def save(self, found: Found) -> None:
        """Keep what is found."""
        arrays = {name: getattr(found, name) for name in ARRAYS}
        with atomic_file(self.path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, key=np.array(self._key), next=np.array(found.next), **arrays)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """The search is finished."""
        self.path.unlink(missing_ok=True)


def _fits(found: Found, known: int, count: int) -> bool:
    """Whether arrays from a file have the shapes, types and ranges of a search's."""
    pairs = len(found.a)
    shapes = [(count,), (count,), (pairs,), (pairs,), (pairs,)]
    kinds = [np.dtype(np.int64)] * 4 + [np.dtype(np.float64)]
    arrays = [getattr(found, name) for name in ARRAYS]
    alike = all(x.shape == s and x.dtype == k for x, s, k in zip(arrays, shapes, kinds, strict=True))
    places = ((found.leader, -1), (found.a, 0), (found.b, known))
    inside = alike and all((x >= least).all() and (x < known + count).all() for x, least in places)
    return bool(inside) and 0 <= found.next <= known + count


def key_of(threshold: float, *sets: np.ndarray | None) -> str:
    """A digest of the features (N, D) of each set and of what decides what a search finds among them."""
    digest = hashlib.sha256(repr((threshold, MOST_PAIRS, [None if x is None else x.shape for x in sets])).encode())
    for x in sets:
        for start in range(0, 0 if x is None else len(x), HASHED_ROWS):
            assert x is not None
            digest.update(np.ascontiguousarray(x[start : start + HASHED_ROWS]).data)
    return digest.hexdigest()
