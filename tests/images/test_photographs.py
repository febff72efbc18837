"""The main job on real photographs: train a little, export, then serve where torch cannot be imported."""

import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from byol.export.exporter import export_bundle
from tests.support.runs import run_training
from tests.support.small import REPOSITORY, config

ARCHIVE = REPOSITORY.parent / "shared" / "data" / "photos.tar.gz"
pytestmark = pytest.mark.skipif(not ARCHIVE.exists(), reason="the photographs are not here")

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from byol.cli import main; main()"


def byol(*words, cwd):
    """Standard output of a `byol` command in a process where `import torch` fails."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    settings = config(arch="resnet18", stem="imagenet", image_size=64, canvas_size=0, batch_size=64, max_steps=4)
    run_training(settings, folder / "train", folder / "run", None)
    export_bundle(folder / "run", folder / "bundle")
    return folder


def test_features_of_all_photographs_are_complete_and_in_order(work):
    summary = json.loads(byol("extract", "bundle", "test", "--out", "test.parquet", "--json", cwd=work))
    assert (summary["images"], summary["skipped"], summary["dim"]) == (200, 0, 512)
    table = pq.read_table(work / "test.parquet")
    paths = sorted(path.relative_to(work / "test").as_posix() for path in (work / "test").rglob("*.*"))
    assert table["id"].to_pylist() == paths
    assert table["label"].to_pylist() == [path.split("/")[0] for path in paths]
    features = np.stack(table["features"].to_numpy())
    assert np.isfinite(features).all()
    assert features.std(axis=0).max() > 0


def test_knn_and_linear_are_above_chance(work):
    for command in ("knn", "linear"):
        result = json.loads(byol(command, "bundle", "--train", "train", "--test", "test", "--json", cwd=work))
        assert (result["n_train"], result["n_test"]) == (600, 200)
        assert result["top1"] > 0.15  # ten classes; even an untrained encoder is at 0.25 to 0.3
