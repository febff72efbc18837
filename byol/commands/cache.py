"""`byol cache`: the decoded images kept between runs."""

from __future__ import annotations

import time

import click

from byol.console import note, show_json, show_line, show_table
from byol.images.cache import DecodedCache, gigabytes
from byol.options import of_option


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """Show the decoded images kept for later runs; `byol cache clear` removes all, or those whose KEY is given.

    They are in $BYOL_HOME (default ~/.cache/byol); $BYOL_CACHE_GB limits their size, 0 keeps none.
    """
    if context.invoked_subcommand:
        return
    kept = DecodedCache()
    entries = kept.entries()
    if as_json:
        listed = [
            {"key": e.path.name, "name": e.meta["name"], "images": e.meta["images"], "bytes": e.size} for e in entries
        ]
        show_json({"folder": str(kept.root), "limit_bytes": kept.limit, "entries": listed})
        return
    total = sum(entry.size for entry in entries)
    show_table([("folder", kept.root), ("kept", f"{gigabytes(total)} of {kept.limit / 1e9:g} GB at most")])
    for entry in entries:
        days = (time.time() - entry.used) / 86_400
        what = f"{entry.meta['name']}: {entry.meta['images']} images at {entry.meta['shape'][1]} px"
        show_line(f"  {entry.path.name[:8]}  {what}, {gigabytes(entry.size)}, used {days:.0f} days ago")


@cache.command()
@click.argument("keys", metavar="[KEY]...", nargs=-1)
def clear(keys: tuple[str, ...]) -> None:
    """Remove decoded images: all, or those of the KEYs.

    `byol cache` shows the keys; the beginning of one is enough. Fetched data sets stay.
    """
    with of_option("KEY"):
        freed = DecodedCache().clear(keys)
    note(f"{gigabytes(freed)} freed")
