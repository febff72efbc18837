"""What a training finds out before it decodes an image, and what it remembers of its validation images."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from byol.encoders.build import build_encoder
from byol.encoders.pretrained import Pretrained
from byol.export.exporter import try_export
from byol.signals import Ended
from byol.training import exportable
from byol.training.data import shared
from byol.training.job import train
from byol.training.recipes.settings import Job, job_of
from byol.training.trainer import Trainer
from tests.support.command_line import byol
from tests.support.inputs.odd_images import stacks
from tests.support.runs import run_training
from tests.support.small import config, folder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = ("--arch", "resnet18", "--stem", "imagenet", "--image-size", 16, "--batch-size", 8, "--max-steps", 1)
NARROW = ("--set", "projector_hidden=16", "--set", "projector_out=8", "--set", "predictor_hidden=16")
CPU = ("--device", "cpu", "--precision", "fp32", *NARROW)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("data") / "train", per_class=8)


@pytest.fixture
def no_decoding(monkeypatch):
    def fail(*_arguments):
        pytest.fail("an image was decoded")

    monkeypatch.setattr(shared, "open_images", fail)
    monkeypatch.setattr(shared, "canvas_side", fail)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch-size", 32), "batch_size 32 is more than the 16 images"),
        (("--device", "cuda"), "device is cuda, but torch"),
        (("--val-data", "nowhere"), "nowhere does not exist"),
        (("--val-data", "{images}/cat"), "8 of 8 images have no label"),
        (("--val-data", "{images}", "--set", "knn_every=0"), "knn_every is 0"),
        (("--nproc", 3), "batch_size 8 cannot be split"),
        (("--nproc", 257), "257 is not in the range"),
        (("--image-size", 8200), "image_size is 8200; expected at most 8,192"),
        (("--set", "warmup_epochs=1e308"), "warmup_epochs is 1e+308; expected a finite number"),
        (("--max-steps", "1" + 400 * "0"), "max_steps is 1000"),
        (("--max-steps", "1" + 5000 * "0"), "is not a valid integer"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_an_image_is_decoded(
    images, tmp_path, no_decoding, words, message
):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    words = [str(word).replace("{images}", str(images)) for word in words]
    done = byol("train", images, "--out", tmp_path / "run", *SMALL, *CPU, *words)
    assert done.code in (1, 2)
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": "2h"}, "seconds is '2h'; expected a number above 0, such as 7200 for two hours"),
        ({"seconds": 0}, "seconds is 0; expected"),
        ({"seconds": -5.0}, "seconds is -5.0; expected"),
        ({"seconds": float("nan")}, "seconds is nan; expected"),
        ({"seconds": np.inf}, "seconds is inf; expected"),
        ({"seconds": 10**400}, "seconds is 1000"),
        ({"seconds": [60]}, r"seconds is \[60\]; expected"),
        ({"config": {"epochs": 5}}, r"config is {'epochs': 5}; expected a byol\.TrainConfig"),
        ({"config": "photos-cpu-1k"}, "config is 'photos-cpu-1k'; expected .* preset of .*PRESETS"),
        ({"images": ["a.png", "b.png"]}, r"images is \['a.png', 'b.png'\]; expected a path or a URL"),
        ({"images": None}, "no images: give DATA"),
        ({"val_data": 5}, "val_data is 5; expected a path or a URL"),
        ({"init": object}, "init is <class 'object'>; expected a path or a URL"),
        ({"out": None}, "out is None; expected the folder of the run"),
    ],
)
def test_arguments_of_no_use_are_refused_before_the_images_are_looked_for(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        train(**{"images": tmp_path / "nowhere", "out": tmp_path / "run", **arguments})
    assert not (tmp_path / "run").exists()


def test_arguments_of_any_suitable_type_are_taken(tmp_path):
    (tmp_path / "photos").mkdir()
    with os.scandir(tmp_path) as entries:
        (entry,) = entries
    job = job_of(entry, "run", b"val", False, "", np.int64(7200))
    assert (job.data, job.out, job.val_data, job.init) == (tmp_path / "photos", Path("run"), Path("val"), None)
    assert (job.seconds, json.dumps(job.seconds)) == (7200, "7200.0")
    assert job_of("s3://bucket//photos", Path("run"), None, True, Path("old"), None) == Job(
        "s3://bucket//photos", Path("run"), resume=True, init=Path("old")
    )


def test_what_cannot_be_resumed_is_refused_before_an_image_is_decoded(images, tmp_path, monkeypatch):
    run_training(config(epochs=1), images, tmp_path / "run")
    other = folder(tmp_path / "other", per_class=9)
    monkeypatch.setattr(shared, "open_images", lambda *_: pytest.fail("an image was decoded"))
    with pytest.raises(ValueError, match=r"was trained on 16 images of train .* now are 18 images of other"):
        run_training(config(epochs=1), other, tmp_path / "run", resume=True)


def test_a_run_without_memory_says_which_new_run_takes_less(images, tmp_path, monkeypatch):
    def full(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    run_training(config(max_steps=2, checkpoint_every=1), images, tmp_path / "run")
    monkeypatch.setattr(Trainer, "step", full)
    less = "out of memory: 8 images of 16 px at a time; use --accumulate 2 or --recompute or a smaller --batch-size"
    with pytest.raises(Ended, match=rf"^{less}, in a new run with another --out; checkpoints are intact$"):
        run_training(config(max_steps=3), images, tmp_path / "new")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["config"]["max_steps"] = 3  # it has not ended yet
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(Ended, match=rf"{less}, .* another --out and --init .*run, to start from its weights"):
        run_training(None, images, tmp_path / "run", resume=True)


# ------------------------------------------------------------------------------------------------ validation images


def forget(run, name):
    stored = json.loads((run / "config.json").read_text())
    del stored[name]
    (run / "config.json").write_text(json.dumps(stored))


def test_validation_images_are_remembered(images, tmp_path, capfd):
    run, settings = tmp_path / "run", config(epochs=1)
    validation = folder(tmp_path / "val", per_class=4, start=5000)
    (validation / "dog" / "003.png").write_bytes(b"no picture")
    run_training(settings, images, run, validation)
    said = capfd.readouterr().err
    assert "kNN: 8 validation images, bank: 16 training images" in said
    assert "skipped 1 of the images for kNN:\n  dog/003.png: not an image" in said
    assert json.loads((run / "config.json").read_text())["val_data"]["images"] == 8

    run_training(settings, None, run, resume=True)
    assert "kNN: 8 validation images" in capfd.readouterr().err
    forget(run, "inputs")  # as a run of an earlier version
    run_training(settings, images, run, resume=True)
    said = capfd.readouterr().err
    assert "warning: no kNN from here on; to continue it, give --val-data (8 images of val (digest " in said
    with pytest.raises(ValueError, match=r"measures kNN on 8 images of val .*, but the images now are 16 images"):
        run_training(settings, images, run, images, resume=True)


def test_validation_images_that_come_later_are_remembered_too(images, tmp_path):
    run, settings = tmp_path / "run", config(epochs=1)
    run_training(settings, images, run)
    stored = json.loads((run / "config.json").read_text())
    run_training(settings, images, run, images, resume=True)
    now = json.loads((run / "config.json").read_text())
    assert now.pop("val_data")["name"] == "train"
    assert now["inputs"].pop("val_data") == str(images)
    assert now == stored


# -------------------------------------------------------------------------------------------------------- the export


class Unexportable(nn.Module):
    """Gives as many features as there are bright values: of no known size."""

    def forward(self, images):
        return images[images > 0][None]


class Unjudged(nn.Module):
    """A clean graph, with an operator that serving does not take."""

    head_hidden_size = 3

    def forward(self, images):
        return torch.sinh(images).mean((2, 3))


def untrained(encoder):
    return Pretrained(encoder, "timm:test_resnet", "imagenet", 16, MEAN, STD)


def test_an_encoder_that_cannot_be_exported_is_told_apart():
    encoder = build_encoder("resnet18", "cifar", 16).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    try_export(untrained(encoder))
    assert encoder.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(ValueError, match=r"a bundle may not contain \(.*NonZero"):
        try_export(untrained(Unexportable()))
    with pytest.raises(ValueError, match="Sinh"):
        try_export(untrained(Unjudged()))


def test_weights_that_overflow_prove_nothing():
    encoder = build_encoder("resnet18", "cifar", 16)
    with torch.no_grad():
        encoder.get_parameter("conv1.weight").fill_(1e38)
    try_export(untrained(encoder))


@pytest.fixture
def refused(monkeypatch):
    """Every encoder is taken for one that has to be tried, and cannot be exported; the sizes it was tried at."""
    sizes = []

    def refuse(source):
        sizes.append(source.image_size)
        raise ValueError("this encoder needs more")

    monkeypatch.setattr(exportable, "TESTED_SIZE", 0)
    monkeypatch.setattr("byol.export.exporter.try_export", refuse)
    return sizes


def test_it_is_found_out_before_training(images, tmp_path, refused, no_decoding):
    done = byol("train", images, "--out", tmp_path / "run", *SMALL, *CPU)
    assert done.code == 1
    assert "resnet18 at 16 px can be trained but not exported: this encoder needs more" in done.err
    assert refused == [16]
    assert not (tmp_path / "run").exists()


def test_it_is_not_asked_again_nor_where_it_is_not_wanted(images, tmp_path, refused):
    done = byol("train", images, "--out", tmp_path / "run", *SMALL, *CPU, "--no-export-check")
    assert done.code == 0, done.err
    done = byol("train", images, "--out", tmp_path / "run", "--resume")
    assert done.code == 0, done.err
    assert refused == []
    words = ("finetune", tmp_path / "run", images, "--out", tmp_path / "tuned", "--lr", 0.01, "--epochs", 1)
    done = byol(*words, "--device", "cpu")
    assert (done.code, refused) == (1, [16]), done.err
    done = byol(*words, "--device", "cpu", "--no-export-check")
    assert done.code == 0, done.err


def test_without_the_exporter_a_note_says_that_nothing_was_checked(images, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(exportable, "TESTED_SIZE", 0)
    for module in [name for name in sys.modules if name.startswith("byol.export")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    run_training(config(epochs=1), images, tmp_path / "run", export_check=True)
    assert (
        "did not check whether timm:test_resnet can be exported: the check needs onnxscript, which is not installed"
        in capfd.readouterr().err
    )
    assert np.isfinite(json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"])


def test_whoever_trains_on_train_and_test_is_told(images, tmp_path):
    for part in ("train", "test"):
        folder(tmp_path / "data" / part, per_class=8)
    done = byol("train", tmp_path / "data", "--out", tmp_path / "run", *SMALL, *CPU)
    assert "warning: training on test and train" in done.err
    assert "warning: training on" not in byol("train", images, "--out", tmp_path / "other", *SMALL, *CPU).err


@pytest.mark.parametrize("kept", [True, False])
def test_stacks_and_animations_are_said_once_a_run(tmp_path, monkeypatch, kept):
    """Decoded before the first step, or met by a stream on its way; a dry run speaks of those that it looks at."""
    monkeypatch.setattr("byol.training.data.decoded.SMALL", 1 << 30 if kept else 0)
    monkeypatch.setenv("BYOL_CACHE_GB", "0")
    data, steps = stacks(folder(tmp_path / "data", per_class=7)), ("--max-steps", 3)
    done = byol("train", data, "--out", tmp_path / "run", *SMALL, *steps, *CPU)
    assert done.code == 0, done.err
    assert ", streamed" in done.err or kept
    lines = [line for line in done.err.splitlines() if "several pictures" in line]
    assert len(lines) == 1
    assert " of 17 images hold several pictures (a stack or an animation), of which the first is read: " in lines[0]
    if kept:
        assert lines[0].startswith("3 of 17 ")
        asked = byol("train", data, "--out", tmp_path / "dry", "--dry-run", *SMALL, *CPU).err
        assert lines[0] in asked.splitlines()
