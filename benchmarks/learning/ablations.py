"""What holds BYOL up: the demo's digits trained with parts of the recipe taken away.

    python -m benchmarks.learning.ablations --out DIR [--epochs N]

Trains each variant by `byol train`; tabulates the last line of its metrics, whether it was warned of collapse, and what
a linear probe makes of the exported encoder with five labelled images of each class.
"""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import click

from benchmarks.rows import FAILED, Row, Rows, byol
from byol.commands.demo import write_digits

VARIANTS: dict[str, list[str]] = {
    "full recipe (tau 0.99 to 1)": [],
    "no predictor": ["--set", "predictor_hidden=0"],
    "tau = 0 (target = online)": ["--tau", "0", "--set", "tau_cosine=false"],
    "tau = 1 (target stays random)": ["--tau", "1"],
    "without crops": ["--set", "view1.crop_area=[1,1]", "--set", "view2.crop_area=[1,1]"],
    "without colour jitter": ["--set", "view1.jitter=0", "--set", "view2.jitter=0"],
    "batch 8": ["--batch-size", "8"],
    "batch 128": ["--batch-size", "128"],
    "no predictor, tau = 0": ["--set", "predictor_hidden=0", "--tau", "0", "--set", "tau_cosine=false"],
}


def run(options: list[str], images: Path, out: Path, epochs: int) -> Row:
    """Train one variant; its final metrics, its probe, and what the monitor said."""
    words = ["train", images / "train", "--val-data", images / "test", "--out", out, "--preset", "demo"]
    log = io.StringIO()
    try:
        byol(*words, "--epochs", epochs, "--set", "log_every=40", *options, log=log)
    finally:
        click.echo(log.getvalue(), err=True)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    warned = [line for line in log.getvalue().splitlines() if line.startswith("warning:")]
    return {"options": options, "warning": warned[0] if warned else None, **few_labels(out, images), **last}


def few_labels(out: Path, images: Path) -> Row:
    """Mean and deviation of the linear probe's accuracy over ten draws of five labelled images of each class."""
    byol("export", out, "--out", out / "bundle")
    sets = ("--train", images / "train", "--test", images / "test")
    result = byol("linear", out / "bundle", *sets, "--labels-per-class", 5, "--draws", 10, "--json")
    (found,) = json.loads(result)["few_labels"]
    return {"linear_5_labels": [found["mean"], found["deviation"]]}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--epochs", default=20, show_default=True)
def main(out: Path, epochs: int) -> None:
    write_digits(out / "images")
    rows = Rows(out / "ablations.json", "benchmarks.learning.ablations")
    for number, (name, options) in enumerate(VARIANTS.items()):
        rows.find(name, partial(run, options, out / "images", out / f"run-{number}", epochs))
    click.echo(
        "| variant | loss | std_ratio | rankme | cosine | kNN | linear, 5 labels a class | collapse warning |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for row in (row for row in rows.rows if FAILED not in row):
        mean, deviation = (100 * value for value in row["linear_5_labels"])
        warned = "at step " + row["warning"].partition("step ")[2].partition(":")[0] if row["warning"] else "none"
        click.echo(
            f"| {row['row']} | {row['loss']:.3f} | {row['std_ratio']:.3f} | {row['rankme']:.1f} "
            f"| {row['cosine']:.3f} | {100 * row['knn_top1']:.1f} | {mean:.1f} +- {deviation:.1f} | {warned} |"
        )


if __name__ == "__main__":
    main()
