"""What a search found, as files: the pairs as Parquet, the images to keep as a list, groups as a picture.

Shapes: P pairs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from byol.files.atomic import atomic_file
from byol.files.regular import sha256_of
from byol.images.grid import Tile, draw_grid
from byol.outputs import PAIR_COLUMNS
from byol.serve.duplicates.search import Found, Search

ROWS_PER_GROUP = 65_536
DRAWN = 12  # duplicates of an image in a picture, at most
KINDS = (pa.string(), pa.string(), pa.float64(), pa.bool_())

Picture = Callable[[int], Image.Image]  # that of a row


def write_pairs(path: Path, found: Found, ids: Callable[[int], str], known: int, facts: dict[str, str]) -> None:
    """Write the listed pairs, the most alike first: `id_a`, `id_b`, `cosine`, and `against`, whether a is known.

    `ids` gives that of a row; the first `known` rows are known images. `facts` become the file's metadata.
    """
    order = np.lexsort((found.a, found.b, -found.cosine))
    fields = [pa.field(name, kind, nullable=False) for name, kind in zip(PAIR_COLUMNS, KINDS, strict=True)]
    schema = pa.schema(fields, metadata=facts)
    with (
        atomic_file(path) as temporary,
        open(temporary, "wb") as stream,
        pq.ParquetWriter(stream, schema) as writer,
    ):
        for start in range(0, len(order), ROWS_PER_GROUP):
            some = order[start : start + ROWS_PER_GROUP]
            a, b = found.a[some], found.b[some]
            names = [pa.array(map(ids, rows.tolist()), pa.string()) for rows in (a, b)]
            columns = [*names, pa.array(found.cosine[some]), pa.array(a < known)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


@contextlib.contextmanager
def kept_list(path: Path, kept: np.ndarray, line: Callable[[int], bytes | None]) -> Iterator[tuple[list[str], int]]:
    """Write the lines that name the kept images (N,); the list appears when the block ends well.

    Yields SHA-256 of the list and of the one that it will replace, and how many images no line can name.
    """
    nameless = 0
    with atomic_file(path) as temporary:
        with open(temporary, "wb") as stream:
            for place in np.flatnonzero(kept).tolist():
                text = line(place)
                if text is None:
                    nameless += 1
                else:
                    stream.write(text + b"\n")
        yield [sha256_of(one) for one in (temporary, path) if one.exists()], nameless


def draw_groups(path: Path, search: Search, found: Found, known: int, picture: Picture, most: int) -> tuple[int, int]:
    """Draw images with their duplicates, `most` of them, evenly spread from the most to the least alike.

    `picture` opens that of a row. Returns how many are drawn, and of how many. Raises `ValueError` where there is none.
    """
    dropped = np.flatnonzero(found.leader >= 0)
    if not len(dropped):
        raise ValueError("there are no duplicates to draw")
    leaders = found.leader[dropped]
    cosines = search.cosines(leaders, dropped + known)
    order = np.lexsort((dropped, -cosines))
    groups: dict[int, list[int]] = {}
    for place in order.tolist():  # a group stands where its most alike pair does
        groups.setdefault(int(leaders[place]), []).append(place)
    rows = list(groups.items())
    shown = np.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=int).tolist()

    def tiles(leader: int, places: Sequence[int]) -> list[Tile]:
        some = places[:DRAWN]
        more = f"+{len(places) - len(some):,}" if len(places) > len(some) else ""
        alike = [Tile(picture(int(dropped[i]) + known), f"{cosines[i]:.4f}") for i in some]
        return [Tile(picture(leader), more), *alike]

    title = f"{len(shown):,} of {len(rows):,} images (framed) with their duplicates, ever less alike"
    draw_grid(path, [tiles(*rows[i]) for i in shown], title)
    return len(shown), len(rows)
