"""What a resumed run keeps, whatever it is called with again."""

from pathlib import Path

import pytest

from byol.training.job import train
from byol.training.resumed import settings_again
from byol.training.run_folder import RunFolder
from tests.support.small import config, folder


def begun(path, settings, **facts):
    run = RunFolder(path)
    run.create(settings, facts)
    return run


def test_settings_given_again_are_those_of_the_run_or_are_refused(tmp_path):
    run = begun(tmp_path / "run", config())
    assert settings_again(run, None) == config()
    assert settings_again(run, config(canvas_size=0, device="auto")) == config(device="auto")
    with pytest.raises(ValueError, match="a resumed run keeps its settings, but these differ: epochs, max_steps; "):
        settings_again(run, config(epochs=200, max_steps=9))


def test_what_the_run_decided_when_it_began_stays(tmp_path):
    planned = config(max_steps=77, knn_every=9, warmup_epochs=0.1)
    assert settings_again(begun(tmp_path / "planned", planned, plan={"seconds": 60.0}), config()) == planned
    with_weights = config(init="bundle 0123", arch="resnet18", image_size=32, mean=(0.5, 0.5, 0.5))
    run = begun(tmp_path / "with weights", with_weights)
    assert settings_again(run, config()) == with_weights
    with pytest.raises(ValueError, match="these differ: lr; "):
        settings_again(run, config(lr=0.1))


def test_other_settings_are_refused_from_python_before_anything_is_changed(tmp_path):
    images = folder(tmp_path / "images", per_class=4)
    run = train(images, tmp_path / "run", config(max_steps=1))
    before = {path.name: path.read_bytes() for path in Path(run).iterdir()}
    with pytest.raises(ValueError, match="these differ: max_steps"):
        train(images, run, config(max_steps=2), resume=True)
    assert {path.name: path.read_bytes() for path in Path(run).iterdir()} == before
