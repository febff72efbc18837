"""A stranger's bundles and runs whose files are no files, or claim more than they are: refused, nothing waited for."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from byol import load_encoder
from byol.bundle.folder import Bundle
from byol.bundle.manifest import Manifest
from byol.bundle.schema import BundleError
from byol.export.foreign.toolkits import foreign_encoder
from byol.export.source import read_run
from byol.files.regular import A_LINK, NO_FILE
from byol.finetuning.checkpoint import read_finetuned
from byol.images.open import open_source
from byol.serve import Encoder
from byol.serve.proof import verify
from byol.serve.report.runs import read_run as read_report_run
from byol.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint, write_tensors
from byol.training.data.decoded import source_digest
from byol.training.run_folder import RunFolder
from tests.support.command_line import byol
from tests.support.runs import run_training
from tests.support.small import config
from tests.support.small import folder as small_folder
from tests.support.tiny import write_tiny_bundle

MEMBERS = ["manifest.json", "encoder.onnx", "encoder.safetensors", "golden.safetensors", "README.md"]

DATA = {"name": "photos", "images": 80, "digest": "0" * 16}


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Whatever waits for a pipe fails instead."""

    def stop(*_: object) -> None:
        raise TimeoutError("this waits for a pipe")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return NO_FILE


def device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return A_LINK


def link_out(path: Path) -> str:
    """To the very content that belongs there: every hash would be right."""
    kept = path.parent.with_name(f"elsewhere-{path.name}")
    path.with_name(f"{path.name}.old").rename(kept)
    path.symlink_to(kept)
    return A_LINK


def folder(path: Path) -> str:
    path.mkdir()
    return NO_FILE


Exchange = Callable[[Path], str]
EXCHANGES = [pipe, device, link_out, folder]


def exchanged(path: Path, exchange: Exchange) -> str:
    path.rename(path.with_name(f"{path.name}.old"))
    return exchange(path)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("name", MEMBERS)
def test_members_of_a_bundle_are_regular_files(name: str, exchange: Exchange, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    reason = exchanged(bundle / name, exchange)
    done = byol("info", "--verify", bundle)
    assert done.code == 1
    assert f"{name}: {reason}" in done.out + done.err
    if name == "manifest.json" or name == "encoder.onnx":
        with pytest.raises(BundleError, match=reason):
            Encoder(bundle, "cpu")


def test_the_bundles_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write_tiny_bundle(tmp_path / "bundle"))
    assert verify(tmp_path / "link").ok


def sized(bundle: Path, name: str, size: int) -> None:
    """The manifest says that the file has `size` bytes."""
    manifest = Bundle.open(bundle).manifest
    entry = manifest.files[name]
    changed = type(entry)(entry.sha256, size, entry.precision, entry.parity)
    Manifest(**{**vars(manifest), "files": {**manifest.files, name: changed}}).write(bundle)


@pytest.mark.parametrize("name", MEMBERS[1:])
def test_a_stated_size_takes_no_memory(name: str, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    sized(bundle, name, 10**15)
    with pytest.raises(BundleError, match=r"has \d+ bytes, not the manifest's 1000000000000000: damaged"):
        Bundle.open(bundle).read(name)
    assert not verify(bundle).ok


@pytest.mark.parametrize("name", MEMBERS[1:])
def test_a_file_of_holes_is_not_read(name: str, tmp_path: Path) -> None:
    """It really has the size that the manifest states, and no content."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    os.truncate(bundle / name, 10**12)
    sized(bundle, name, 10**12)
    with pytest.raises(BundleError, match=r"has 1,000,000,000,000 bytes, more than the [\d,]+ allowed"):
        Bundle.open(bundle).read(name)
    assert not verify(bundle).ok


def test_what_a_file_grows_by_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "bundle"))
    before, fstat, looks = bundle.read("README.md"), os.fstat, []

    def fstat_then_grow(descriptor: int) -> os.stat_result:
        looks.append(descriptor)
        found = fstat(descriptor)
        if len(looks) == 2:  # the first asks whether it is a regular file, the second for its size
            with (bundle.folder / "README.md").open("ab") as file:
                file.write(b"more")
        return found

    monkeypatch.setattr(os, "fstat", fstat_then_grow)
    assert bundle.read("README.md") == before
    assert len(looks) == 2


# ---------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    folder = RunFolder(path)
    folder.create(config(), {"data": DATA})
    folder.log({"step": 1, "epoch": 1, "loss": 2.0})
    save_checkpoint(folder.last, Checkpoint(config(), 1, 1, DATA, {"a": torch.zeros(1)}))
    return path


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_runs_checkpoint_is_a_regular_file(run: Path, exchange: Exchange) -> None:
    reason = exchanged(run / "last.safetensors", exchange)
    for read in (load_encoder, read_run, lambda path: RunFolder(path).checkpoint()):
        with pytest.raises(ValueError, match=rf"last\.safetensors: {reason}"):
            read(run)


def test_a_checkpoint_that_is_named_may_be_a_link_and_no_pipe(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to(run / "last.safetensors")
    assert read_checkpoint(tmp_path / "link.safetensors").step == 1
    os.mkfifo(tmp_path / "pipe.safetensors")
    for read in (load_encoder, read_run, read_checkpoint):
        with pytest.raises(ValueError, match=NO_FILE):
            read(tmp_path / "pipe.safetensors")


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_settings_and_metrics_are_regular_files(run: Path, exchange: Exchange) -> None:
    reason = exchanged(run / "metrics.jsonl", exchange)
    with pytest.raises(OSError, match=reason):
        RunFolder(run).metrics()
    with pytest.raises(ValueError, match=rf"metrics\.jsonl cannot be read: {reason}"):
        read_report_run(run)
    reason = exchanged(run / "config.json", exchange)
    with pytest.raises(ValueError, match=rf"config\.json cannot be read: {reason}"):
        RunFolder(run).config()
    with pytest.raises(ValueError, match=rf"config\.json cannot be read: {reason}"):
        read_report_run(run)


def test_settings_and_metrics_are_read_up_to_a_limit(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(run / "config.json", 10**12)
    with pytest.raises(ValueError, match="larger than 16,777,216 bytes"):
        RunFolder(run).config()
    os.truncate(run / "metrics.jsonl", 2 * 10**6)
    assert RunFolder(run).metrics()[0]["step"] == 1
    monkeypatch.setenv("BYOL_METRICS_MB", "1")
    with pytest.raises(OSError, match="larger than 1,000,000 bytes"):
        RunFolder(run).metrics()


def test_json_that_nests_without_end_is_one_line(run: Path) -> None:
    (run / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    assert RunFolder(run).metrics() == []
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds no metrics"):
        read_report_run(run)
    (run / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        RunFolder(run).config()
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        read_report_run(run)


def test_a_picture_of_views_behind_a_link_is_not_shown(run: Path) -> None:
    (run / "views.png").symlink_to("/etc/hostname")
    assert read_report_run(run).views is None


# ------------------------------------------------------------------------------- small files of large architectures

ARCH = "timm:vit_tiny_patch16_224"  # it stands for one of 27 GB: what counts is that none is built


@pytest.fixture
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models can be built on the meta device alone, where they take no memory."""
    timm = pytest.importorskip("timm")

    def on_meta(build: Callable[..., Any]) -> Callable[..., Any]:
        def built(*arguments: Any, **options: Any) -> Any:
            assert torch.get_default_device().type == "meta", "memory was taken"
            return build(*arguments, **options)

        return built

    monkeypatch.setattr(timm, "create_model", on_meta(timm.create_model))
    monkeypatch.setattr(torchvision.models, "get_model", on_meta(torchvision.models.get_model))


@pytest.mark.usefixtures("_no_memory")
@pytest.mark.parametrize(("library", "name"), [("timm", "vit_tiny_patch16_224"), ("torchvision", "resnet50")])
def test_a_small_bundle_that_names_a_large_model_is_refused(tmp_path: Path, library: str, name: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    architecture = type(manifest.architecture)(library, name, "imagenet")
    Manifest(**{**vars(manifest), "architecture": architecture}).write(bundle)
    with pytest.raises(ValueError, match="does not fit this model"):
        load_encoder(bundle)


@pytest.mark.usefixtures("_no_memory")
@pytest.mark.parametrize("arch", [ARCH, "resnet50"])
def test_small_checkpoints_that_name_large_models_are_refused(tmp_path: Path, arch: str) -> None:
    settings, tensors = config(arch=arch, stem="auto", image_size=64), {"online.encoder.a": torch.zeros(1)}
    file, foreign = tmp_path / "run.safetensors", tmp_path / "foreign.safetensors"
    save_checkpoint(file, Checkpoint(settings, 1, 1, DATA, tensors))
    with pytest.raises(ValueError, match="does not fit this model"):
        load_encoder(file)
    save_file({"conv1.weight": torch.zeros(1, 1, 1, 1)}, foreign)
    with pytest.raises(ValueError, match="does not fit this model"):
        foreign_encoder(foreign, "auto", arch, 224)


@pytest.mark.usefixtures("_no_memory")
def test_a_small_fine_tuned_file_that_names_a_large_model_is_refused(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"arch": "resnet50", "stem": "imagenet", "image_size": 64}
    facts |= {"mean": [0, 0, 0], "std": [1, 1, 1]}
    texts = {"task": "finetune", "source": json.dumps(facts), "head": json.dumps({"classes": ["a", "b"]})}
    write_tensors(tmp_path / "last.safetensors", {"a": torch.zeros(1)}, texts)
    with pytest.raises(ValueError, match="does not fit this model"):
        read_finetuned(tmp_path)


@pytest.mark.usefixtures("_no_memory")
def test_a_small_run_with_a_large_model_is_not_continued(tmp_path: Path) -> None:
    images, run = small_folder(tmp_path / "images"), RunFolder(tmp_path / "run")
    facts = {"name": "images", "images": 20, "digest": source_digest(open_source(images))}
    run.create(config(), {"data": facts})
    save_checkpoint(run.last, Checkpoint(config(), 1, 0, facts, {"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="does not fit this model"):
        run_training(config(), images, run.path, resume=True)
