"""`byol duplicates`: pairs of near-duplicates, the images to keep, and a picture. Heavy imports wait until it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byol.console import note, note_device, note_skipped, progress
from byol.images.location import Location, same_place
from byol.options import LOCATION, FiniteRange, OutputFile, of_option
from byol.serve.commands.evaluation import note_nameless
from byol.serve.commands.neighbors import pictures
from byol.serve.commands.options import BUNDLE, device_option, json_option, show
from byol.serve.limits import LARGEST_THRESHOLD, MOST_PAIRS, THRESHOLD
from byol.text import printable, reason_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from byol.images.source import ImageSource
    from byol.serve.duplicates.search import Found, Search
    from byol.serve.duplicates.unfinished import Unfinished
    from byol.serve.evaluate.sets import Evaluation
    from byol.serve.features.read import Features

COMMON = 1e-3  # of all pairs: so many are hardly duplicates, but features that are all alike


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="[BUNDLE] SRC")
@click.option("--against", type=LOCATION, help="Known images, or features: compared with SRC, not with one another.")
@click.option("--out", required=True, type=OutputFile(), help="Write the pairs: FILE.parquet.")
@click.option(
    "--threshold",
    type=FiniteRange(0, LARGEST_THRESHOLD, min_open=True),
    default=THRESHOLD,
    show_default=True,
    help="The least cosine of near-duplicates.",
)
@click.option("--keep", type=OutputFile(), help="Write the images of SRC without the duplicates, as a list: FILE.txt.")
@click.option("--images", type=LOCATION, help="Where the images are, if SRC is a features file; for --keep and --grid.")
@click.option("--grid", type=OutputFile(), help="Draw images that are kept, each with its duplicates: FILE.png.")
@click.option(
    "--grid-rows", type=click.IntRange(1, 500), default=20, show_default=True, help="Rows drawn, evenly spread."
)
@device_option
@json_option
def duplicates(
    places: tuple[str, ...],
    against: Location | None,
    out: Path,
    threshold: float,
    keep: Path | None,
    images: Location | None,
    grid: Path | None,
    grid_rows: int,
    device: str,
    as_json: bool,
) -> None:
    """Find near-duplicates among the images of SRC, or of those of --against in SRC.

    SRC is images, encoded by BUNDLE, or features that `extract` wrote, which need no BUNDLE. Of near-duplicates the
    first in order is kept; those of --against come before all. After an interruption, run the same command again.
    """
    from byol.serve.duplicates.unfinished import Unfinished, key_of
    from byol.serve.features.places import places_of

    start = time.perf_counter()
    bundle, location = _named(places, against)
    _require_outputs({"--out": out, "--keep": keep, "--grid": grid}, [location, against, bundle, images])
    _require_pictures(location, against, images, grid is not None)
    data, source = _load(bundle, location, against, images, keep is not None, device)
    rows = None if source is None else places_of(data.test, source)
    draw = _drawer(data, source, rows, grid, grid_rows)
    line = _lines(data.test, source, rows) if keep else None
    unfinished = Unfinished(out, key_of(threshold, *_sets(data)))
    search, found = _search(data, unfinished, threshold)
    values = _counts(data, search, found, threshold)
    _write(out, keep, data, found, threshold, line)
    values |= {"keep": printable(keep)} if keep else {}
    values["out"] = printable(out)
    if draw and values["duplicates"]:
        values["grid"] = draw(search, found)
    unfinished.remove()  # now nothing of it can be lost any more
    values["seconds"] = round(time.perf_counter() - start, 3)
    show(values, as_json)


# ------------------------------------------------------------------------------------------ before the work


def _named(places: tuple[str, ...], against: Location | None) -> tuple[Path | None, Location]:
    """BUNDLE and SRC. Raises `UsageError` where one of them is missing, or one too many is given."""
    from byol.images.open import open_source
    from byol.serve.evaluate.sets import needs_bundle

    if len(places) > 2:
        raise click.UsageError(
            f"expected [BUNDLE] SRC, but got {len(places)} arguments; put quotes round names with spaces"
        )
    context = click.get_current_context()
    location = LOCATION.convert(places[-1], None, context)
    bundle = Path(BUNDLE.convert(places[0], None, context)) if len(places) == 2 else None
    if against is not None and same_place(location, against):
        raise click.UsageError("SRC and --against are the same; leave --against out")
    images = needs_bundle(location, *([] if against is None else [against]))
    if bundle is None and images is not None:
        open_source(images)  # which says so where there is nothing
        raise click.UsageError(
            f"{printable(images)} is not a features file; name the bundle that encodes its images: "
            "byol duplicates BUNDLE SRC"
        )
    return bundle, location


def _require_outputs(files: dict[str, Path | None], inputs: list[Location | None]) -> None:
    """Raise for what cannot be written, would overwrite something of value, or has another suffix."""
    from byol import outputs
    from byol.outputs import require_output

    kept = outputs.kept_beside(files["--out"] or Path())
    kinds = {"--out": (outputs.PAIRS, ".parquet"), "--keep": (kept, ".txt"), "--grid": (outputs.GRID, ".png")}
    for option, file in files.items():
        kind, suffix = kinds[option]
        with of_option(option):
            if file and file.suffix.lower() != suffix:
                raise ValueError(f"{printable(file)} does not end in {suffix}")
            if file:
                require_output(file, kind, inputs)


def _require_pictures(location: Location, against: Location | None, images: Location | None, grid: bool) -> None:
    """Raise `UsageError` where --images has no sense, or --grid has no images."""
    from byol.serve.features.read import is_features

    features = is_features(location)
    if images is not None and not features:
        raise click.UsageError("--images names the images of features, but SRC holds images itself; leave it out")
    if grid and features and images is None:
        raise click.UsageError("--grid draws images, but SRC is a features file; name its images by --images")
    if grid and against is not None and is_features(against):
        raise click.UsageError("--grid draws images, but --against is a features file; give its images")


def _load(
    bundle: Path | None,
    location: Location,
    against: Location | None,
    images: Location | None,
    keep: bool,
    device: str,
) -> tuple[Evaluation, ImageSource | None]:
    """The features of SRC as `test` and of known images as `train`, and where the images of SRC are."""
    from byol.images.open import open_source
    from byol.images.source import ImageSource
    from byol.serve.evaluate.sets import load_sets, open_sets

    sets = open_sets(location, None) if against is None else open_sets(against, location)
    source = sets[1] if isinstance(sets[1], ImageSource) else None if images is None else open_source(images)
    if keep and source and source.line is None:
        raise click.UsageError(f"--keep lists files, but {source.name} holds no separate ones; leave it out")
    note_nameless(bundle, sets)
    data = load_sets(bundle, sets, device, progress)
    if data.encoder:
        note_device(device, data.encoder.device, data.encoder.reason)
    note_skipped(data.skipped[1], of="SRC")
    if not data.one_set:
        note_skipped(data.skipped[0], of="--against")
    return data, source


def _lines(features: Features, source: ImageSource | None, places: np.ndarray | None) -> Callable[[int], bytes | None]:
    """The line that names the image of a row of SRC; without its images, a row's id."""
    from byol.images.lists import line_of

    if source is None or places is None:
        note("the list names images as the features do: use it in the folder that was extracted, or give --images")
        return lambda row: line_of(features.ids[row].encode("utf-8", "surrogatepass"))
    of_place = source.line
    assert of_place is not None  # `_load` refuses it
    return lambda row: of_place(int(places[row]))


def _drawer(
    data: Evaluation, source: ImageSource | None, places: np.ndarray | None, grid: Path | None, most: int
) -> Callable[[Search, Found], str] | None:
    """What draws the groups and returns the name of the picture."""
    if grid is None or source is None or places is None:  # --grid is refused where there are no images
        return None
    from byol.serve.features.places import places_of

    known, of_new, bank = _known(data), pictures(source, places), data.sources[0]
    of_known = pictures(bank, places_of(data.train, bank)) if known and bank else of_new

    def picture(row: int) -> Image.Image:
        return of_known(row) if row < known else of_new(row - known)

    def draw(search: Search, found: Found) -> str:
        from byol.serve.duplicates.write import draw_groups

        draw_groups(grid, search, found, known, picture, most)
        return printable(grid)

    return draw


# ------------------------------------------------------------------------------------------------- the work


def _known(data: Evaluation) -> int:
    """The number of known images."""
    return 0 if data.one_set else len(data.train)


def _sets(data: Evaluation) -> tuple[np.ndarray, np.ndarray | None]:
    """The features of SRC, and those of known images."""
    return data.test.x, None if data.one_set else data.train.x


def _search(data: Evaluation, unfinished: Unfinished, threshold: float) -> tuple[Search, Found]:
    """Compare all; an interrupted call with the same features and output is continued. What is found is kept."""
    from byol.serve.duplicates.search import Found, Search
    from byol.signals import Stopped

    search = Search(*_sets(data), threshold)
    found = unfinished.load(_known(data), len(data.test))
    if found:
        note("resuming the interrupted comparison")
    found = found or Found.nothing(len(data.test))
    try:
        with progress("compare pairs", search.total) as advance:
            search.run(found, advance, unfinished.pause)
    except Stopped as error:
        text = "run the same command again to resume; at most a minute of work is lost"
        raise click.ClickException(f"{error}; {text}") from None
    try:
        unfinished.save(found)
    except OSError as error:  # the results may still have room
        note(f"the finished comparison cannot be kept, should writing its results fail: {reason_of(error)}")
    return search, found


def _counts(data: Evaluation, search: Search, found: Found, threshold: float) -> dict[str, Any]:
    """The numbers of a search; says what is odd about them."""
    listed, kept = len(found.a), int(found.kept.sum())
    if listed < found.pairs:
        note(f"of an image's pairs the first {MOST_PAIRS} are listed, {listed:,} of {found.pairs:,} in all")
    if found.pairs > max(COMMON * search.total, len(data.test)):
        note(
            f"warning: {found.pairs / search.total:.2%} of all pairs reach the threshold; unless the images really are "
            "that similar, this encoder cannot tell them apart: raise --threshold"
        )
    values = {"images": len(data.test), "threshold": threshold, "pairs": found.pairs, "listed": listed}
    values |= {"duplicates": len(data.test) - kept, "kept": kept}
    if not data.one_set:
        of_known = (found.leader >= 0) & (found.leader < len(data.train))
        values |= {"against": len(data.train), "duplicates_of_against": int(of_known.sum())}
    return values


def _write(
    out: Path,
    keep: Path | None,
    data: Evaluation,
    found: Found,
    threshold: float,
    line: Callable[[int], bytes | None] | None,
) -> None:
    """Write the pairs, and the list a moment later: they name it, so that the same command may replace it."""
    from byol.images.shards.schema import DIGEST_KEY
    from byol.outputs import KEPT_KEY, THRESHOLD_KEY
    from byol.serve.duplicates.write import kept_list, write_pairs

    known, digest = _known(data), data.encoder.digest if data.encoder else data.test.bundle
    facts = {THRESHOLD_KEY: repr(threshold)} | ({DIGEST_KEY: digest} if digest else {})

    def name(row: int) -> str:
        return data.train.ids[row] if row < known else data.test.ids[row - known]

    if keep is None or line is None:
        write_pairs(out, found, name, known, facts)
        return
    with kept_list(keep, found.kept, line) as (digests, nameless):
        write_pairs(out, found, name, known, {**facts, KEPT_KEY: " ".join(digests)})
    if not found.kept.any():
        note(f"{printable(keep)} is empty: every image is a duplicate of one of --against")
    if nameless:
        note(f"left {nameless:,} images out of {printable(keep)}: a line end in the name, or a URL with secrets")
