"""How long a fuzzer goes on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator


def tries(seconds: float, most: int | None = None) -> Iterator[int]:
    """0, 1, 2, ... for some time; or up to `most`, however long that takes, so that a slow machine tries no less."""
    end = time.monotonic() + seconds
    numbers = itertools.count() if most is None else iter(range(most))
    return itertools.takewhile(lambda _: most is not None or time.monotonic() < end, numbers)
