"""The demo's parts, and the whole of it with a small encoder and a short training. `.ci/run` checks its claim."""

import json

import numpy as np
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from byol.commands.demo import FEW_LABELS, TRAIN_IMAGES, demo, run_demo, table, write_digits
from byol.images.open import open_source
from byol.serve.proof import verify
from byol.training.recipes.presets import PRESETS


def test_digits_are_written_without_loss(tmp_path):
    write_digits(tmp_path)
    train, test = open_source(tmp_path / "train"), open_source(tmp_path / "test")
    assert (len(train), len(test)) == (TRAIN_IMAGES, 500)
    assert train.classes == test.classes == [str(digit) for digit in range(10)]
    digits = load_digits()
    for row in (0, 700, TRAIN_IMAGES - 1):
        place = train.ids.index(f"{digits.target[row]}/{row:04d}.png")
        pixels = np.asarray(train.open(place))[..., 0].astype(float)
        np.testing.assert_allclose(pixels * 16 / 255, digits.images[row], atol=0.04)


def test_the_whole_demo_with_a_short_training(tmp_path, capsys):
    out = tmp_path / "demo"
    run_demo(PRESETS["demo"]().replace(epochs=1, arch="timm:test_resnet"), out)
    printed = capsys.readouterr().out
    rows = json.loads((out / "results.json").read_text())
    assert [row["features"] for row in rows] == ["raw pixels", "untrained encoder", "trained encoder"]
    assert table(rows) in printed
    keys = {f"{name}_{count}" for name in ("knn", "linear") for count in (*FEW_LABELS, "all")}
    assert all(keys <= set(row) and all(10 < row[key] <= 100 for key in keys) for row in rows)
    assert verify(out / "bundle").ok
    assert verify(out / "untrained-bundle").ok
    for name in ("neighbours.png", "run/views.png"):
        with Image.open(out / name) as picture:
            assert len(np.unique(np.asarray(picture))) > 10  # it shows something


def test_an_output_folder_in_use_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    result = CliRunner().invoke(demo, ["--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not empty" in result.output
    result = CliRunner().invoke(demo, ["--out", str(tmp_path / "thesis.txt")])
    assert (result.exit_code, "is not a folder" in result.output) == (2, True)
