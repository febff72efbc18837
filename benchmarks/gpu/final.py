"""What a run ended with: the last line of its metrics, its time in steps and its settings; its records are copied.

python -m benchmarks.gpu.final RUN BUNDLE --out FILE.json
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import click

from benchmarks.learning.headline import training_seconds
from benchmarks.rows import Row, Rows


def last(run: Path) -> Row:
    config = json.loads((run / "config.json").read_text())
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    seconds = training_seconds(run, config["config"]["batch_size"])
    return {**metrics, "training_seconds": round(seconds, 1), "settings": config["config"]}


def copied(paths: list[Path], folder: Path) -> Row:
    for path in paths:
        shutil.copy(path, folder)
    return {"files": [path.name for path in paths]}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(run: Path, bundle: Path, out: Path) -> None:
    rows = Rows(out, "benchmarks.gpu.final", "auto")
    rows.find("final step", partial(last, run))
    rows.find("records", partial(copied, [run / "metrics.jsonl", run / "config.json"], out.parent))
    rows.find("manifest", partial(copied, [bundle / "manifest.json"], out.parent))


if __name__ == "__main__":
    main()
