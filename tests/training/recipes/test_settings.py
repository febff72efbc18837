"""What a run remembers of what was asked, and where a resumed one finds its images."""

import json
from pathlib import Path
from typing import Any

import pytest

from byol.images.open import open_source
from byol.training import job
from byol.training.recipes.presets import PRESETS
from byol.training.recipes.settings import Job, settings_for
from tests.support.command_line import byol
from tests.support.small import config, folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("data") / "train", per_class=12)


def test_places_hold_in_any_folder_and_hold_no_secrets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = Job(Path("photos"), Path("run"), "s3://bucket/val", tensorboard=True, init=Path("bundle"))
    assert asked.inputs() == {
        "data": str(tmp_path / "photos"),
        "val_data": "s3://bucket/val",
        "init": str(tmp_path / "bundle"),
        "tensorboard": True,
    }
    assert Job(Path("cifar10:test"), Path("run")).inputs()["data"] == "cifar10:test"
    for unknowable in (Path("-"), "https://user:secret@host/a.tar", "https://host/a.tar?token=secret"):
        assert Job(unknowable, Path("run")).inputs() == {"tensorboard": False}


def test_what_is_given_anew_counts_and_the_rest_is_remembered():
    stored = {"data": "/a/photos", "val_data": "s3://bucket/val", "tensorboard": True}
    again = Job(None, Path("run"), resume=True).continued(stored)
    assert (again.data, again.val_data, again.tensorboard) == (Path("/a/photos"), "s3://bucket/val", True)
    moved = Job(Path("/b/photos"), Path("run"), resume=True).continued(stored)
    assert moved.data == Path("/b/photos")
    with pytest.raises(ValueError, match="run does not say where its images are; give DATA"):
        Job(None, Path("run"), resume=True).continued({"data": None})


def test_a_run_resumes_without_being_told_its_images(images, tmp_path):
    run = tmp_path / "run"
    job.run_training(Job(images, run, images), config(epochs=1))
    done = byol("train", "--out", run, "--resume")
    assert done.code == 0, done.err
    assert "continuing after step 3" in done.err
    assert "kNN: 24 of 24 validation images" in done.err
    copy = folder(tmp_path / "copy-of-train", per_class=12)
    done = byol("train", copy, "--out", run, "--resume", "--val-data", copy)
    assert done.code == 0, done.err
    assert json.loads((run / "config.json").read_text())["inputs"]["data"] == str(copy)
    other = folder(tmp_path / "other", per_class=9)
    done = byol("train", other, "--out", run, "--resume")
    assert done.code == 1
    assert "was trained on 24 images of train" in done.err


def test_options_are_not_refused_for_a_batch_or_an_encoder_that_nobody_gave(images, tmp_path, monkeypatch):
    taken: list[Any] = []

    def launched(*_):
        taken.append(None)
        return True

    monkeypatch.setattr("byol.training.job.run_training", lambda *given: taken.append(given))
    monkeypatch.setattr("byol.training.parallel.launcher.launch", launched)
    recipe = PRESETS["photos-cpu-10k"]()
    for words in (
        ("--accumulate", 32),
        ("--accumulate", 9),
        ("--set", "accumulate=64"),
        ("--nproc", 8, "--accumulate", 4),
        ("--nproc", 11),
        ("--set", "drop_path=0.1"),
    ):
        done = byol("train", images, "--out", tmp_path / "run", "--device", "cpu", *words)
        assert done.code == 0, done.err
    assert len(taken) == 6
    asked, base, change = taken[-1]
    assert base is None
    config = settings_for(asked, open_source(images), base, change, None)
    assert (config.arch, config.drop_path, config.device) == (recipe.arch, 0.1, "cpu")
    refused: list[tuple[tuple[object, ...], str]] = [
        (("--accumulate", 0), "accumulate is 0; expected 1 or more"),
        (("--accumulate", 10**7), "accumulate is 10000000; expected a divisor of batch_size 1048576"),
        (("--set", "accumulate=x"), "accumulate is 'x'"),
        (("--set", "drop_path=0.1", "--arch", "resnet18"), "drop_path is for timm's models; resnet18 has none"),
        (("--batch-size", 8, "--accumulate", 3), "accumulate is 3; expected a divisor of batch_size 8"),
    ]
    for given, message in refused:
        done = byol("train", images, "--out", tmp_path / "run", "--device", "cpu", *map(str, given))
        assert (done.code, message in " ".join(done.err.split())) == (2, True), done.err
    assert len(taken) == 6


def test_every_option_reaches_its_setting(images, tmp_path, monkeypatch):
    taken: list[Any] = []
    monkeypatch.setattr("byol.training.job.run_training", lambda *given: taken.append(given))
    values = {"batch_size": 6, "arch": "resnet34", "stem": "imagenet", "image_size": 40, "max_steps": 77, "epochs": 5}
    values |= {"accumulate": 3, "optimizer": "lars", "lr": 0.125, "tau": 0.875, "seed": 9, "precision": "fp32"}
    words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--recompute", "--no-compile", "--tensorboard", "--no-export-check", "--val-data", images]
    done = byol("train", images, "--out", tmp_path / "run", "--device", "cpu", *words)
    assert done.code == 0, done.err
    ((asked, base, change),) = taken
    found = settings_for(asked, open_source(images), base, change, None).to_dict()
    wanted = values | {"recompute": True, "compile": "none", "device": "cpu"}
    assert {name: found[name] for name in wanted} == wanted
    assert (asked.val_data, asked.tensorboard, asked.export_check) == (images, True, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Missing argument 'DATA'"),
        (("{images}", "--time", "1h", "--epochs", "3"), "--time decides how many steps are taken"),
        (("{images}", "--time", "soon"), "write one such as 45m, 2h or 1h30m"),
        (("{images}", "--time", "-5m"), "write one such as 45m, 2h or 1h30m"),
        (("{images}", "--dry-run", "--nproc", "2"), "--dry-run measures one process"),
        (("{images}", "--json"), "--json works only with --dry-run"),
        (("{images}", "--set", "init=x"), "use --init"),
    ],
)
def test_options_that_exclude_each_other_are_refused(images, tmp_path, words, message):
    done = byol("train", "--out", tmp_path / "run", *(str(word).replace("{images}", str(images)) for word in words))
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_other_settings_for_a_resumed_run_point_to_init(images, tmp_path):
    job.run_training(Job(images, tmp_path / "run"), config(epochs=1))
    for words, message in (
        (
            ("--epochs", "40"),
            "a resumed run keeps its settings, but these differ: epochs; leave the options out. "
            "To train on with others, start a new run from its weights: another --out with --init RUN",
        ),
        (("--init", tmp_path / "run"), "a resumed run continues with its own weights"),
        (("--dry-run",), "--dry-run is for a new run"),
        (("--time", "1h"), "a resumed run keeps its length; leave out --time"),
    ):
        done = byol("train", "--out", tmp_path / "run", "--resume", *words)
        assert done.code in (1, 2)
        assert message in " ".join(done.err.split())


def test_a_run_goes_on_without_validation_images_that_are_gone_and_says_whose_images_are(tmp_path):
    images, validation = folder(tmp_path / "train", per_class=8), folder(tmp_path / "val", per_class=4, start=5000)
    job.run_training(Job(images, tmp_path / "run", validation), config(epochs=1))
    validation.rename(tmp_path / "away")
    done = byol("train", "--out", tmp_path / "run", "--resume")
    assert done.code == 0, done.err
    assert "warning: no kNN from here on; to continue it, give --val-data (8 images of val" in done.err
    assert "does not exist" in byol("train", "--out", tmp_path / "run", "--resume", "--val-data", validation).err
    (tmp_path / "away").rename(validation)
    assert "kNN: 8" in byol("train", "--out", tmp_path / "run", "--resume").err  # it still knows them
    images.rename(tmp_path / "away")
    done = byol("train", "--out", tmp_path / "run", "--resume")
    assert done.code == 1
    assert "the run began with these images: give DATA if they have moved" in done.err
