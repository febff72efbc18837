"""All rows of the results as text, and the figures that they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.rows import Row

LONG = ("top", "settings", "files", "said", "packages")  # of a row: for its file only
TRAIN_SECONDS, CIFAR10 = 240, 50_000


def summary(results: Mapping[str, Any]) -> str:
    """`results` maps the names of files to what they hold."""
    found = {name: content["rows"] for name, content in results.items() if "rows" in content}
    lines = [line for name, rows in found.items() for line in table(name, rows)]
    return "\n".join([*lines, *ratios(found)])


def table(name: str, rows: list[Row]) -> Iterator[str]:
    for row in rows:
        facts = " ".join(f"{key}={value}" for key, value in row.items() if key != "row" and key not in LONG)
        scores = {key: value for key, value in row.get("said", {}).items() if key in ("top1", "top5", "l2", "device")}
        yield f"{name:16.16} {row['row']:56.56} {facts[:240]} {scores or ''}".rstrip()


def ratios(found: Mapping[str, list[Row]]) -> Iterator[str]:
    """Ours over lightly's loop and over our own ceiling, and the epochs that fit into call three."""
    rates = {
        row["row"]: row["images_per_second"]
        for name in ("training", "peers")
        for row in found.get(name, [])
        if "images_per_second" in row
    }
    pairs = {
        "ours / lightly's loop, from the same files": ("ours from the same files", "lightly's documented loop"),
        "ours / our ceiling, compiled": ("compile all, 512", "ceiling: the same views each step, compile all, 512"),
        "ours / our ceiling, eager": ("compile none, 512", "ceiling: the same views each step, compile none, 512"),
    }
    for name, (ours, other) in pairs.items():
        if ours in rates and other in rates:
            yield f"{name}: {rates[ours] / rates[other]:.2f}"
    rows = {row["row"]: row for row in found.get("training", [])}
    chosen = rows.get("compile all, 512", {})
    if "images_per_second" in chosen:
        seconds = TRAIN_SECONDS - chosen["warm_up_seconds"]
        yield f"for call three: --epochs {int(seconds * chosen['images_per_second'] / CIFAR10)}"
