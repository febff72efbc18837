"""`byol cache`: the decoded images kept between runs."""

from __future__ import annotations

import time

import click

from byol.console import note, show_json, show_line, show_table
from byol.images.cache import DecodedCache


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """Show the decoded images kept for later runs; `byol cache clear` removes them.

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
    show_table([("folder", kept.root), ("kept", f"{total / 1e9:.2f} GB of {kept.limit / 1e9:.0f} GB")])
    for entry in entries:
        days = (time.time() - entry.used) / 86_400
        what = f"{entry.meta['name']}: {entry.meta['images']} images at {entry.meta['shape'][1]} px"
        show_line(f"  {what}, {entry.size / 1e6:.0f} MB, used {days:.0f} days ago")


@cache.command()
def clear() -> None:
    """Remove all decoded images. Fetched data sets stay."""
    freed = DecodedCache().clear()
    note(f"{freed / 1e6:.0f} MB freed")
