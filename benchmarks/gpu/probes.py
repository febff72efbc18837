"""kNN and the linear probe on a GPU, beside the CPU and torch.

python -m benchmarks.gpu.probes --out FILE.json [--dry]
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks.gpu.scale import DRY, FULL, Scale
from benchmarks.rows import Row, Rows
from benchmarks.speed.serve import K, features
from byol.serve import KNNClassifier, LinearProbe


def knn(scale: Scale, device: str) -> Row:
    """Seconds to take the bank in and to find the neighbours of all queries, the first time and again."""
    bank, labels, queries, truth = features(bank=scale.bank, queries=scale.queries)
    moments = [time.perf_counter()]
    made = KNNClassifier(K, device=device).fit(bank, labels)
    moments.append(time.perf_counter())
    for _ in range(2):
        made.kneighbors(queries)
        moments.append(time.perf_counter())
    fit, first, again = np.diff(moments).round(3).tolist()
    accuracy = float(made.score(queries, truth))
    return {"fit": fit, "search": first, "search_again": again, "top1": accuracy, "device": made.device_}


def torch_knn(scale: Scale) -> Row:
    """The same search by torch, and how many of its neighbours are ours."""
    bank, labels, queries, _ = features(bank=scale.bank, queries=scale.queries)
    b, q = (normalize(torch.from_numpy(x).to(scale.device), dim=1) for x in (bank, queries))
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        theirs = torch.cat([(part @ b.T).topk(K).indices for part in q.split(1024)]).cpu().numpy()
        seconds.append(round(time.perf_counter() - started, 3))
    ours = KNNClassifier(K, device=scale.device).fit(bank, labels).kneighbors(queries[:200])[1]
    same = [len(np.intersect1d(a, c)) / K for a, c in zip(ours, theirs, strict=False)]
    return {"search": seconds[0], "search_again": seconds[1], "same_neighbours": float(np.mean(same))}


def linear(scale: Scale, device: str) -> Row:
    """Seconds of one fit, and what it found."""
    x, y, z, truth = features(bank=scale.bank, queries=scale.queries)
    started = time.perf_counter()
    probe = LinearProbe(1e-3, device).fit(x, y)
    seconds = round(time.perf_counter() - started, 2)
    facts = {"fit": seconds, "iterations": int(probe.n_iter_), "device": probe.device_}
    return {**facts, "top1": float(probe.score(z, truth))}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--dry", is_flag=True, help="Tiny, on the CPU.")
def main(out: Path, dry: bool) -> None:
    scale = DRY if dry else FULL
    rows = Rows(out, "benchmarks.gpu.probes", scale.device)
    for device in dict.fromkeys((scale.device, "cpu")):
        rows.find("knn", partial(knn, scale, device), asked=device)
        rows.find("linear", partial(linear, scale, device), asked=device)
    rows.find("knn by torch", partial(torch_knn, scale))


if __name__ == "__main__":
    main()
