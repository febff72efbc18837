"""Does serving stay flat? Memory and descriptors of a long extraction, and of one encoder under many threads.

    python -m benchmarks.robustness.soak BUNDLE IMAGES --out FILE.json [--images 100000] [--threads 16] [--seconds 120]

The extraction is `byol extract` of links to the files of IMAGES, again and again, one in twenty of them broken. The
threads share one `Encoder` of this process and call it with one image, with a list, and with files that cannot be read,
each as fast as it can. Both are sampled once a second; FILE has the median of each tenth of the time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.robustness.faults import BROKEN_EVERY, finish, linked, start
from benchmarks.rows import Rows
from byol.serve import Encoder

Sample = tuple[int, int, int]  # bytes in memory, open descriptors, threads


def sample(pid: int | str) -> Sample:
    place = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024, len(os.listdir(place / "fd")), int(fields["Threads"])


def tenths(samples: list[Sample]) -> dict[str, list[float]]:
    """The median of each tenth of the time."""
    size = max(1, len(samples) // 10)
    groups = [samples[i : i + size] for i in range(0, size * (len(samples) // size), size)]
    memory, descriptors, threads = (
        [statistics.median(one[column] for one in group) for group in groups] for column in range(3)
    )
    return {"memory_mb": [round(v / 1e6, 1) for v in memory], "descriptors": descriptors, "threads": threads}


def watched(pid: int | str, running: Callable[[], bool]) -> list[Sample]:
    samples = []
    while running():
        try:
            samples.append(sample(pid))
        except (OSError, KeyError):  # it has just ended
            break
        time.sleep(1)
    return samples


def long_extraction(bundle: Path, images: Path, count: int, work: Path) -> dict[str, Any]:
    broken = linked(images, count, work / "images", BROKEN_EVERY)
    options = {"device": "cpu", "part_images": 5_000, "processes": 1}
    process: subprocess.Popen[str] = start(bundle, work / "images", work / "features", options)
    samples = watched(process.pid, lambda: process.poll() is None)
    result = finish(process)
    counts = {"images": count, "rows": result["images"], "left_out": result["skipped"], "broken": len(broken)}
    return {**counts, "seconds": len(samples), **tenths(samples)}


def many_threads(bundle: Path, images: Path, threads: int, seconds: float, work: Path) -> dict[str, Any]:
    files = sorted(path for path in images.rglob("*") if path.is_file())[:500]
    bad = work / "bad.jpg"
    bad.write_bytes(files[0].read_bytes()[:100])
    encoder = Encoder(bundle, "cpu")
    expected = {file: encoder([file]).tobytes() for file in files}
    calls, wrong, refused = [0] * threads, [0] * threads, [0] * threads
    end = time.monotonic() + seconds

    def work_on(number: int) -> None:
        place = number
        while time.monotonic() < end:
            place = (place + 7) % len(files)
            if calls[number] % 10 == 9:
                try:
                    encoder([bad])
                except ValueError:
                    refused[number] += 1
            elif calls[number] % 10 == 8:
                encoder(files[place : place + 5])
            else:
                wrong[number] += encoder([files[place]]).tobytes() != expected[files[place]]
            calls[number] += 1

    workers = [threading.Thread(target=work_on, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    samples = watched("self", lambda: any(worker.is_alive() for worker in workers))
    counts = {"threads": threads, "calls": sum(calls), "wrong": sum(wrong), "refused": sum(refused)}
    return {**counts, "seconds": len(samples), **{f"process_{k}": v for k, v in tenths(samples).items()}}


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("images", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--images", "count", default=100_000, show_default=True)
@click.option("--threads", default=16, show_default=True)
@click.option("--seconds", default=120.0, show_default=True)
def main(bundle: Path, images: Path, out: Path, count: int, threads: int, seconds: float) -> None:
    rows = Rows(out, "benchmarks.robustness.soak")
    with tempfile.TemporaryDirectory() as temporary:
        work, folder = Path(temporary), images.resolve()
        rows.find("threads", partial(many_threads, bundle, folder, threads, seconds, work))
        rows.find("extraction", partial(long_extraction, bundle, folder, count, work))


if __name__ == "__main__":
    main()
