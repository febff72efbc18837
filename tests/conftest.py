"""Tests keep nothing in the user's own cache; what takes long to make is made once."""

import json
import os
import signal

import pytest

from byol import telemetry  # noqa: F401 - before any test imports onnxruntime, which it keeps from reporting

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: more threads would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if hasattr(signal, "SIGHUP"):  # what the tests start obeys it, also where they themselves run under `nohup`
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The files that take longest, first: what is left at the end is short.
LONG = [
    *("tests.training.test_trainer", "tests.pages.test_tutorial", "tests.training.parallel.test_processes"),
    *("tests.whole.test_interruptions", "tests.finetuning.test_finetune", "tests.export.test_exporter"),
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.module.__name__) if item.module.__name__ in LONG else len(LONG))


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYOL_HOME", str(tmp_path_factory.mktemp("byol-home")))
        yield


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A run's checkpoint, labelled images, and the bundle with everything in it."""
    import torch

    from byol.training.checkpoint import Checkpoint, save_checkpoint
    from byol.training.model import BYOL
    from tests.support.command_line import byol
    from tests.support.networks import randomise_norms
    from tests.support.small import RESNET18, config, folder

    root = tmp_path_factory.mktemp("additions")
    torch.manual_seed(0)
    settings = config(**RESNET18)
    tensors = dict(randomise_norms(BYOL(settings)).state_dict())
    data = {"name": "photos", "images": 80, "digest": "0" * 16}
    (root / "run").mkdir()
    save_checkpoint(root / "run" / "last.safetensors", Checkpoint(settings, 20, 2, data, tensors))
    folder(root / "train", per_class=16)
    folder(root / "test", per_class=8, start=1000)
    done = byol(
        *("export", root / "run", "--out", root / "bundle", "--precision", "fp16", "--precision", "int8"),
        *("--calibrate", root / "train", "--any-size"),
        *("--eval-train", root / "train", "--eval-test", root / "test"),
    )
    assert done.code == 0, done.err
    (root / "said").write_text(done.out)
    return root


@pytest.fixture(scope="session")
def classified(place):
    """The reported figures of `byol linear --save-classifier`."""
    from tests.support.command_line import byol

    words = ("--train", place / "train", "--test", place / "test", "--save-classifier", place / "with", "--json")
    done = byol("linear", place / "bundle", *words)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture(scope="session")
def quick(tmp_path_factory):
    """run/, its bundle/, and labelled train/ and test/: an encoder that trains in a second."""
    import torch

    from byol.export.exporter import export_bundle
    from byol.training.checkpoint import Checkpoint, save_checkpoint
    from byol.training.model import BYOL
    from tests.support.small import config, folder

    root = tmp_path_factory.mktemp("quick")
    settings = config(stem="imagenet", seed=7)
    torch.manual_seed(7)
    (root / "run").mkdir()
    data = {"name": "photos", "images": 80, "digest": "0" * 16}
    checkpoint = Checkpoint(settings, 20, 2, data, dict(BYOL(settings).state_dict()))
    save_checkpoint(root / "run" / "last.safetensors", checkpoint)
    export_bundle(root / "run", root / "bundle")
    folder(root / "train", per_class=16)
    folder(root / "test", per_class=8, start=1000)
    return root
