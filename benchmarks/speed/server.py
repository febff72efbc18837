"""`byol serve` under load: images/s and latency beside the bare session, on the same machine in the same run.

    python -m benchmarks.speed.server BUNDLE PHOTOS --out FILE.json [--clients 64] [--seconds 20] [--rounds 3]

Rows, in turn: "session alone" runs preprocessed batches; "Encoder" goes from files to features without HTTP; "server"
is a `byol serve` process that `--clients` clients ask for `POST /features`, a picture a request, each as soon as it has
its answer. The clients are threads of another process on the same machine and take their share of its cores.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.rows import Row, Rows, said, start


def session_alone(bundle: Path, pictures: list[bytes], device: str, seconds: float) -> dict[str, float]:
    from byol.images.picture.read import decode_image
    from byol.serve import Encoder

    encoder = Encoder(bundle, device)
    transform = encoder.manifest.preprocess.transform()
    pixels = [transform(decode_image(picture, transform.least_side)) for picture in pictures[: encoder.batch_size]]
    batch = np.resize(np.stack(pixels), (encoder.batch_size, *pixels[0].shape))
    encoder.encode(batch)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        encoder.encode(batch)
        count += len(batch)
    return {"images_per_second": count / (time.perf_counter() - started)}


def without_http(bundle: Path, photos: Path, device: str, seconds: float) -> dict[str, float]:
    from byol.serve import Encoder

    encoder = Encoder(bundle, device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += sum(len(ids) for ids, _ in encoder.stream(photos))
    return {"images_per_second": count / (time.perf_counter() - started)}


def clients(port: int, pictures: list[bytes], count: int, seconds: float) -> dict[str, float]:
    """Ask until the time is over; the first second is not counted."""
    begin = time.perf_counter() + 1

    def client(number: int) -> list[tuple[float, float]]:
        connection, turn, found = http.client.HTTPConnection("127.0.0.1", port), number, []
        while (started := time.perf_counter()) < begin + seconds:
            connection.request("POST", "/features", pictures[turn % len(pictures)], {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            found.append((started, time.perf_counter()))
            turn += count
        return found

    with ThreadPoolExecutor(count) as pool:
        spans = [span for found in pool.map(client, range(count)) for span in found]
    taken = [end - start for start, end in spans if begin <= end <= begin + seconds]
    p50, p99 = np.percentile(taken, [50, 99])
    return {"images_per_second": len(taken) / seconds, "p50_ms": 1000 * p50, "p99_ms": 1000 * p99}


def server(bundle: Path, photos: Path, device: str, count: int, seconds: float) -> dict[str, float]:
    words = ("byol", "serve", bundle, "--port", 0, "--device", device, "--no-log")
    with start(*words, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        port = next(found[1] for line in process.stderr if (found := re.search(r"serving on http://.*:(\d+)", line)))
        try:
            return worker("clients", port, photos, count, seconds)
        finally:
            process.terminate()


def worker(*words: object) -> dict[str, float]:
    """A row in a process of its own."""
    found: dict[str, float] = json.loads(said("benchmarks.speed.server", "--worker", *words).splitlines()[-1])
    return found


def read(photos: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(photos.rglob("*")) if path.is_file()][:512]


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("photos", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--clients", "count", default=64, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Of each row and round.")
@click.option("--rounds", default=3, show_default=True)
def main(bundle: Path, photos: Path, out: Path, device: str, count: int, seconds: float, rounds: int) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    encoder = {"architecture": manifest["architecture"], "image_size": manifest["image_size"]}
    rows = Rows(out, "benchmarks.speed.server", device, encoder=encoder, clients=count)
    ways: dict[str, Callable[[], Row]] = {
        "session alone": partial(worker, "session", bundle, photos, device, seconds),
        "Encoder": partial(worker, "encoder", bundle, photos, device, seconds),
        "server": partial(server, bundle, photos, device, count, seconds),
    }
    for number in range(1, rounds + 1):
        for name, work in ways.items():
            rows.find(name, work, round=number)
    rates, alone = rows.medians("images_per_second"), rows.medians("images_per_second").get("session alone", np.nan)
    p50, p99 = rows.medians("p50_ms"), rows.medians("p99_ms")
    click.echo("| row | images/s | / session alone | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for name, rate in rates.items():
        times = " | ".join(f"{found[name]:.0f}" if name in found else "" for found in (p50, p99))
        click.echo(f"| {name} | {rate:.1f} | {rate / alone:.2f} | {times} |")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--worker"]:
        main()
    else:
        kind, first, where, *rest = sys.argv[2:]
        folder = Path(where)
        if kind == "clients":
            answer = clients(int(first), read(folder), int(rest[0]), float(rest[1]))
        elif kind == "session":
            answer = session_alone(Path(first), read(folder), rest[0], float(rest[1]))
        else:
            answer = without_http(Path(first), folder, rest[0], float(rest[1]))
        click.echo(json.dumps(answer))
