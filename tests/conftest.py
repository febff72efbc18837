"""Tests keep nothing in the user's own cache; what takes long to make is made once."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from byol import telemetry  # noqa: F401 - before any test imports onnxruntime, which it keeps from reporting

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: more threads would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # where a test asks for two, the waiting one burns no core

if hasattr(signal, "SIGHUP"):  # what the tests start obeys it, also where they themselves run under `nohup`
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The files that take longest, first: what is left at the end is short.
LONG = [
    *("tests.encoders.test_timm_models", "tests.training.parallel.test_processes", "tests.training.test_trainer"),
    *("tests.export.foreign.test_toolkits", "tests.export.test_exporter", "tests.serve.extract.test_ray_engine"),
    *("tests.whole.test_interruptions", "tests.whole.test_streams", "tests.training.test_begun"),
    *("tests.export.test_additions", "tests.finetuning.test_finetune", "tests.export.test_settle"),
    *("tests.training.parallel.test_patience", "tests.serve.extract.test_processes", "tests.pages.test_tutorial"),
    *("tests.whole.test_network", "tests.whole.test_demo"),
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.module.__name__) if item.module.__name__ in LONG else len(LONG))


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYOL_HOME", str(tmp_path_factory.mktemp("byol-home")))
        yield


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("disks can only be mounted by root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(NAME, make)`: a folder that `make(folder)` fills, once for all processes of this run of the tests."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder_of(name, make):
        folder = shared / f"shared-{name}"
        with locked(shared / f"shared-{name}.lock"):
            if not folder.exists():
                (own / name).mkdir()
                make(own / name)
                (own / name).rename(folder)
        return folder

    return folder_of


@contextlib.contextmanager
def locked(path):
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def place(made_once):
    """A run's checkpoint, labelled images, and the bundle with everything in it; `said` is what the export printed."""
    return made_once("place", make_place)


def make_place(root):
    import torch

    from byol.training.checkpoint import Checkpoint, save_checkpoint
    from byol.training.model import BYOL
    from tests.support.command_line import byol
    from tests.support.networks import randomise_norms
    from tests.support.small import RESNET18, config, folder

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


@pytest.fixture(scope="session")
def classified(place, made_once):
    """The reported figures of `byol linear --save-classifier`, which wrote the bundle `place / "with"`."""
    from tests.support.command_line import byol

    def classify(root):
        words = ("--train", place / "train", "--test", place / "test", "--save-classifier", place / "with", "--json")
        done = byol("linear", place / "bundle", *words)
        assert done.code == 0, done.err
        (root / "said").write_text(done.out)

    return json.loads((made_once("classified", classify) / "said").read_text())


@pytest.fixture(scope="session")
def quick(made_once):
    """run/, its bundle/, and labelled train/ and test/: an encoder that trains in a second."""
    return made_once("quick", make_quick)


def make_quick(root):
    import torch

    from byol.export.exporter import export_bundle
    from byol.training.checkpoint import Checkpoint, save_checkpoint
    from byol.training.model import BYOL
    from tests.support.small import config, folder

    settings = config(stem="imagenet", seed=7)
    torch.manual_seed(7)
    (root / "run").mkdir()
    data = {"name": "photos", "images": 80, "digest": "0" * 16}
    checkpoint = Checkpoint(settings, 20, 2, data, dict(BYOL(settings).state_dict()))
    save_checkpoint(root / "run" / "last.safetensors", checkpoint)
    export_bundle(root / "run", root / "bundle")
    folder(root / "train", per_class=16)
    folder(root / "test", per_class=8, start=1000)
