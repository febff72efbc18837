"""One extraction, killed again and again: does it end with the files that an undisturbed one gives?

    python -m benchmarks.robustness.faults BUNDLE IMAGES --out FILE.json [--images 20000] [--kills 30] [--processes 1]

IMAGES (a folder) is linked file by file; one in twenty links leads to a broken file. An undisturbed run comes first.
Then the same is done by a command that is sent SIGKILL at random moments, once finds no room on the disk (a small file
system in memory, which needs root; skipped elsewhere), and once has an image deleted that it has not come to yet. FILE
says what was seen, and whether rows, their bytes and the list of errors are those of the undisturbed run.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq

from benchmarks.rows import Row, Rows
from benchmarks.rows import start as start_module
from byol.images.open import open_source

BROKEN_EVERY = 20


def linked(images: Path, count: int, folder: Path, broken_every: int) -> list[str]:
    """A folder of `count` links, images again and again, every so many broken (0: none); the names of those."""
    ids = list(open_source(images).ids)
    broken = []
    for number in range(count):
        name = ids[number % len(ids)]
        link = folder / name.rpartition("/")[0] / f"{number:07d}-{Path(name).name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        if broken_every and number % broken_every == 7:
            content = (images / name).read_bytes()
            link.write_bytes(content[: len(content) // 2] if number % 2 else b"")  # cut short, or empty
            broken.append(link.relative_to(folder).as_posix())
        else:
            link.symlink_to((images / name).resolve())
    return sorted(broken)


def start(bundle: Path, images: Path, out: Path, options: dict[str, Any]) -> subprocess.Popen[str]:
    words: list[object] = ["byol", "extract", bundle, images, "--out", f"{out}/", "--json"]
    for name in ("device", "part_images", "processes"):
        words += [f"--{name.replace('_', '-')}", options[name]]
    return start_module(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, errors = process.communicate()
    if process.returncode:
        raise click.ClickException(f"byol extract ended with {process.returncode}: {errors}")
    result: dict[str, Any] = json.loads(said)
    return result


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def kill_at_random(bundle: Path, images: Path, out: Path, options: dict[str, Any], kills: int, undisturbed: Row) -> Row:
    """Kill the command `kills` times, each soon enough for all to come before its end, and let it end then."""
    seconds, idle = undisturbed["seconds"], undisturbed["idle_seconds"]
    longest = idle + 3 * (seconds - idle) / kills
    half_written, parts = 0, list[int]()
    while len(parts) < kills:
        process = start(bundle, images, out, options)
        time.sleep(random.uniform(0, longest))
        if process.poll() is not None:
            finish(process)  # it was complete before the kills were used up
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        half_written += bool(list(out.glob("data/.part-*.tmp")))
        parts.append(len(list(out.glob("data/part-*.parquet"))))
    finish(start(bundle, images, out, options))
    return {
        "finished_parts_at_each_kill": parts,
        "kills_that_left_a_half_written_part": half_written,
        "identical": contents(out) == contents(out.with_name("whole")),
    }


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A file system of so many bytes. Raises `CalledProcessError` where it cannot be mounted."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def fill_disk(bundle: Path, images: Path, undisturbed: Path, options: dict[str, Any]) -> Row:
    """Extract to a disk that is too small by half; make room; go on."""
    whole = contents(undisturbed)
    size = sum(map(len, whole.values()))
    with small_disk(2 * size + 1_000_000) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(3 * size // 2 + 1_000_000))
        process = start(bundle, images, disk / "out", options)
        _, said = process.communicate()
        finished = len(list((disk / "out").glob("data/part-*.parquet")))
        ballast.unlink()
        finish(start(bundle, images, disk / "out", options))
        return {
            "exit": process.returncode,
            "said": said.strip().splitlines()[-1].replace(str(disk), "DISK"),
            "finished_parts": finished,
            "identical_after_room_was_made": contents(disk / "out") == whole,
        }


def delete_one(bundle: Path, images: Path, out: Path, options: dict[str, Any]) -> Row:
    """Delete the last image while the first ones are computed: are all others there, once each and in order?"""
    names = list(open_source(images).ids)
    process = start(bundle, images, out, options)
    while not list(out.glob("data/part-*.parquet")):
        time.sleep(0.05)
    (images / names[-1]).unlink()
    finish(process)
    ids, listed = names_in(out)
    return {
        "in_order_and_once_each": ids == sorted(set(ids), key=str.encode),
        "only_the_deleted_one_is_missing": set(names) - set(ids) - set(listed) <= {names[-1]},
        "nothing_else_came": set(ids) | set(listed) <= set(names),
    }


def names_in(out: Path) -> tuple[list[str], list[str]]:
    """The ids of all rows, in order, and the paths of what was left out, sorted."""
    parts = sorted(out.glob("data/part-*.parquet"))
    ids = [name for part in parts for name in pq.read_table(part, columns=["id"]).column("id").to_pylist()]
    return ids, sorted(pq.read_table(out / "_errors" / "errors.parquet").column("path").to_pylist())


def undisturbed(bundle: Path, images: Path, out: Path, options: dict[str, Any], broken: list[str]) -> Row:
    started = time.perf_counter()
    result = finish(start(bundle, images, out, options))
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    finish(start(bundle, images, out, options))  # there is nothing left to do
    return {
        "rows": result["images"],
        "broken": len(broken),
        "seconds": round(seconds, 1),
        "idle_seconds": round(time.perf_counter() - started, 1),
        "exactly_the_broken_images_are_listed": names_in(out)[1] == broken,
    }


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("images", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--images", "count", default=20_000, show_default=True)
@click.option("--part-images", default=500, show_default=True)
@click.option("--kills", default=30, show_default=True)
@click.option("--processes", default=1, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(bundle: Path, images: Path, out: Path, count: int, kills: int, seed: int, **options: Any) -> None:
    random.seed(seed)
    rows = Rows(out, "benchmarks.robustness.faults", options["device"], images=count)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        links, whole = work / "images", work / "whole"
        broken = linked(images, count, links, BROKEN_EVERY)
        first = rows.find("undisturbed", partial(undisturbed, bundle, links, whole, options, broken))
        rows.find("killed", partial(kill_at_random, bundle, links, work / "killed", options, kills, first))
        rows.find("full disk", partial(fill_disk, bundle, links, whole, options))
        rows.find("deleted meanwhile", partial(delete_one, bundle, links, work / "deleted", options))


if __name__ == "__main__":
    main()
