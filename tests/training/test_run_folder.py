"""Runs, checkpoints and caches that came from somebody else: one line and exit 1, whatever they hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from byol import load_encoder
from byol.strict_json import read_object
from byol.training.checkpoint import read_checkpoint
from byol.training.job import train
from byol.training.run_folder import RunFolder
from tests.support.command_line import Outcome, byol
from tests.support.small import config

DEEP = "[" * 100_000
BAD_TEXTS = {
    "empty": "",
    "no JSON": "{",
    "a list": "[1]",
    "deep": DEEP,
    "a deep object": '{"a":' * 100_000,
    "NaN": '{"images": NaN}',
    "infinite": '{"images": 1e999}',
    "twice": '{"a": 1, "a": 2}',
    "many digits": '{"images": ' + "9" * 5000 + "}",
    "half a pair": '{"\\ud800": "\\ud800"}',
}


def one_line(done: Outcome, *words: str) -> None:
    assert done.code == 1, done
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("Error:")] == lines[-1:], done.err
    assert "Traceback" not in done.err
    assert all(word in lines[-1] for word in words), done.err
    assert len(lines[-1]) < 2000


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_json_that_is_refused(text: str) -> None:
    if "ud800" in text:
        assert read_object(text)
        return
    with pytest.raises(ValueError, match=r".") as caught:
        read_object(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_bytes_are_utf_8_and_nothing_else() -> None:
    assert read_object('{"a": "\u00e9"}'.encode()) == {"a": "\u00e9"}
    for encoding in ("latin-1", "utf-16", "utf-32"):
        with pytest.raises(ValueError, match="not valid JSON"):
            read_object('{"a": "\u00e9"}'.encode(encoding))


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def run(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of one training step."""
    folder = tmp_path_factory.mktemp("good") / "run"
    folder.mkdir()
    shutil.copy(quick / "run" / "last.safetensors", folder)
    data = {"name": "photos", "images": 80, "digest": "0" * 16}
    settings = read_checkpoint(folder / "last.safetensors").config.to_dict()
    (folder / "config.json").write_text(json.dumps({"config": settings, "data": data}))
    (folder / "metrics.jsonl").write_text('{"step": 20, "epoch": 2.0, "loss": 1.0}\n')
    return folder


def with_metadata(run: Path, to: Path, **changes: str | None) -> Path:
    """A copy of a run whose checkpoint has other metadata; None: the entry is missing."""
    shutil.copytree(run, to)
    with safe_open(run / "last.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), **changes}
    known = {name: value for name, value in metadata.items() if value is not None}
    save_file(tensors, to / "last.safetensors", known)
    return to


def settings(**changes: Any) -> str:
    return json.dumps({**config(stem="imagenet", seed=7).to_dict(), **changes})


def facts(**changes: Any) -> str:
    return json.dumps({"name": "photos", "images": 80, "digest": "0" * 16, **changes})


METADATA = {
    **{f"data: {name}": {"data": text} for name, text in BAD_TEXTS.items()},
    **{f"config: {name}": {"config": text} for name, text in BAD_TEXTS.items()},
    "no data": {"data": None},
    "no config": {"config": None},
    "no step": {"step": None},
    "no images": {"data": facts(images=0)},
    "images below 0": {"data": facts(images=-5)},
    "images as text": {"data": facts(images="80")},
    "images as a float": {"data": facts(images=80.5)},
    "true images": {"data": facts(images=True)},
    "huge images": {"data": facts(images=10**400)},
    "a name that is none": {"data": facts(name=["photos"])},
    "step below 0": {"step": "-1"},
    "step in words": {"step": "twenty"},
    "step of many digits": {"step": "9" * 4000},
    "step in other digits": {"step": "\u0662"},
    "a view of text": {"config": settings(view1="none")},
    "a view with more": {"config": settings(view1={"\x1b[2J": 1})},
    "an architecture that is none": {"config": settings(arch=18)},
    "an unknown one": {"config": settings(arch="resnet18\x1b]0;x\x07\n")},
    "a huge width": {"config": settings(projector_hidden=10**18)},
    "a huge size": {"config": settings(image_size=10**9)},
    "a huge seed": {"config": settings(seed=10**300)},
    "no deviation": {"config": settings(std=[0, 1, 1])},
    "a setting of tomorrow": {"config": settings(**{"tomorrow\u202e\n": 1})},
    "a long name": {"config": settings(optimizer="x" * 1_000_000)},
    "another task": {"task": "dance\x07"},
    "another format": {"format": "2\x1b[2J"},
}


@pytest.mark.parametrize("changes", METADATA.values(), ids=METADATA)
def test_metadata_of_a_checkpoint(run: Path, tmp_path: Path, changes: dict[str, str | None]) -> None:
    bad = with_metadata(run, tmp_path / "bad", **changes)
    one_line(byol("export", bad, "--out", tmp_path / "bundle"), "bad/last.safetensors")
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(ValueError, match="last"):
        load_encoder(bad)


def test_commands_that_start_from_a_checkpoint(run: Path, quick: Path, tmp_path: Path) -> None:
    bad = with_metadata(run, tmp_path / "bad", data=facts(images=0))
    one_line(byol("finetune", bad, quick / "train", "--out", tmp_path / "tuned"), "data.images is 0")
    one_line(byol("train", quick / "train", "--out", bad, "--resume"), "data.images is 0")


def test_a_name_that_a_manifest_may_not_hold_is_written_so_that_it_may(run: Path, tmp_path: Path) -> None:
    odd = with_metadata(run, tmp_path / "odd", data=facts(name="a\x1b[2J\u202e\n"))
    assert byol("export", odd, "--out", tmp_path / "bundle").code == 0
    assert "a\\x1b[2J\\u202e\\n, 80 images" in byol("info", tmp_path / "bundle").out


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 8 + b"{}", b"x" * 4096], ids=str)
def test_files_that_are_no_checkpoints(run: Path, tmp_path: Path, content: bytes) -> None:
    bad = shutil.copytree(run, tmp_path / "bad")
    (bad / "last.safetensors").write_bytes(content)
    one_line(byol("export", bad, "--out", tmp_path / "bundle"), "not a readable safetensors file")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("conv1.0.weight", kind) for kind in (torch.float8_e4m3fn, torch.complex64, torch.int64, torch.bool)),
        *(("conv1.1.num_batches_tracked", kind) for kind in (torch.float8_e5m2, torch.complex64, torch.bool)),
    ],
    ids=str,
)
def test_weights_of_another_kind(run: Path, tmp_path: Path, name: str, kind: torch.dtype) -> None:
    bad = shutil.copytree(run, tmp_path / "bad")
    with safe_open(run / "last.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    changed = tensors[f"online.encoder.{name}"].to(kind)
    save_file({**tensors, f"online.encoder.{name}": changed}, bad / "last.safetensors", metadata)
    one_line(byol("export", bad, "--out", tmp_path / "bundle"), name, str(kind))


# ------------------------------------------------------------------------------------------------ run folders

CONFIGS: dict[str, bytes] = {
    **{name: text.encode() for name, text in BAD_TEXTS.items()},
    "binary": bytes(range(256)),
    "latin": b'{"config": {"preset": "\xe9"}}',
    "a config of text": b'{"config": "none"}',
    "no config": b'{"data": {"name": "photos", "images": 80, "digest": "0"}}',
    "data of text": b'{"config": {}, "data": "photos"}',
    "another task": b'{"config": {}, "task": "dance\\u0007\\n"}',
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_the_settings_of_a_run(run: Path, quick: Path, tmp_path: Path, content: bytes) -> None:
    bad = shutil.copytree(run, tmp_path / "bad")
    (bad / "config.json").write_bytes(content)
    one_line(byol("train", quick / "train", "--out", bad, "--resume"), "bad")
    if b"another" not in content and b"dance" not in content:
        one_line(byol("report", bad, "--out", tmp_path / "page.html"), "bad/config.json")


FACTS: dict[str, Any] = {
    "no images": {"data": {"name": "x", "images": 0, "digest": "0"}},
    "images of text": {"data": {"name": "x", "images": "many", "digest": "0"}},
    "half of it": {"data": {"images": 80}},
    "no batch": {"config": {"batch_size": 0, "epochs": 2}},
    "epochs of text": {"config": {"batch_size": 8, "epochs": "two"}},
    "steps of a list": {"config": {"max_steps": [1]}},
    "huge epochs": {"config": {"batch_size": 8, "epochs": 10**300}},
    "versions of a list": {"versions": ["torch"]},
}


@pytest.mark.parametrize("changes", FACTS.values(), ids=FACTS)
def test_facts_that_a_report_shows(run: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    bad = shutil.copytree(run, tmp_path / "bad")
    whole = json.loads((run / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps({**whole, **changes}))
    one_line(byol("report", bad, "--out", tmp_path / "page.html"), "bad/config.json")


LINES = {
    **{name: text.replace("images", "step").encode() for name, text in BAD_TEXTS.items() if name != "empty"},
    "no step": b'{"epoch": 1, "loss": 2}',
    "a huge step": b'{"epoch": 1, "step": 1' + b"0" * 400 + b"}",
    "a huge epoch": b'{"epoch": 1e308, "step": 1}',
    "text": b'{"epoch": 1, "step": "one"}',
    "binary": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_lines_of_metrics(run: Path, quick: Path, tmp_path: Path, line: bytes) -> None:
    bad = shutil.copytree(run, tmp_path / "bad")
    (bad / "metrics.jsonl").write_bytes(line + b"\n")
    one_line(byol("report", bad, "--out", tmp_path / "page.html"), "bad/metrics.jsonl", "damaged")
    assert RunFolder(bad).drop_metrics_after(20).ignored == "ignored 1 damaged line of metrics.jsonl"
    assert RunFolder(bad).metrics() == []


def test_report_and_resume_ignore_the_same_lines(quick: Path, tmp_path: Path) -> None:
    odd, words = (
        train(quick / "train", tmp_path / "odd", config(max_steps=1)),
        "ignored 4 damaged lines of metrics.jsonl",
    )
    whole = (odd / "metrics.jsonl").read_bytes()
    (odd / "metrics.jsonl").write_bytes(b'{\n{"epoch": 1}\n{"epoch": 1, "step": null}\n{"step": "1"}\n' + whole)
    for done in (
        byol("report", odd, "--out", tmp_path / "page.html"),
        byol("train", quick / "train", "--out", odd, "--resume"),
    ):
        assert (done.code, done.err.count(words)) == (0, 1), done.err
    assert (odd / "metrics.jsonl").read_bytes() == whole


# ------------------------------------------------------------------------------------------------ fine-tunings


@pytest.fixture(scope="module")
def tuned(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "tuned"
    words = ("--lr", "0.01", "--epochs", "1", "--labels-per-class", "4", "--device", "cpu")
    done = byol("finetune", quick / "run", quick / "train", "--out", out, *words)
    assert done.code == 0, done.err
    return out


def changed(part: str, change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, str]], dict[str, str]]:
    def apply(metadata: dict[str, str]) -> dict[str, str]:
        values = json.loads(metadata[part])
        change(values)
        return {part: json.dumps(values)}

    return apply


def replaced(part: str, text: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda _: {part: text}


TUNED = {
    **{f"source: {name}": replaced("source", text) for name, text in BAD_TEXTS.items()},
    **{f"head: {name}": replaced("head", text) for name, text in BAD_TEXTS.items()},
    "classes of text": changed("head", lambda head: head.update(classes="cat")),
    "classes of numbers": changed("head", lambda head: head.update(classes=[1, 2])),
    "an unknown key": changed("head", lambda head: head.update(more=1)),
    "train of a list": changed("head", lambda head: head.update(train=[])),
    "arch of a number": changed("source", lambda source: source.update(arch=1)),
    "size of text": changed("source", lambda source: source.update(image_size="16")),
    "a huge size": changed("source", lambda source: source.update(image_size=10**9)),
    "mean of a number": changed("source", lambda source: source.update(mean=1)),
    "mean of text": changed("source", lambda source: source.update(mean=["a", "b", "c"])),
    "training of a list": changed("source", lambda source: source.update(training=[1])),
    "training of text": changed("source", lambda source: source["training"].update(images="80")),
    "training with more": changed("source", lambda source: source["training"].update(more=1)),
    "finetuning without data": changed("source", lambda source: source["finetuning"].pop("data")),
    "more": changed("source", lambda source: source.update(more=1)),
    "no mean": changed("source", lambda source: source.pop("mean")),
}


@pytest.mark.parametrize("change", TUNED.values(), ids=TUNED)
def test_metadata_of_a_fine_tuning(
    tuned: Path, tmp_path: Path, change: Callable[[dict[str, str]], dict[str, str]]
) -> None:
    with safe_open(tuned / "last.safetensors", framework="pt") as file:
        changes = change(file.metadata())
    bad = with_metadata(tuned, tmp_path / "bad", **changes)
    one_line(byol("export", bad, "--out", tmp_path / "bundle"), "bad/last.safetensors")


def test_lines_of_a_fine_tuning_that_are_none(tuned: Path, quick: Path, tmp_path: Path) -> None:
    again = shutil.copytree(tuned, tmp_path / "again")
    odd = ('{"draw": 0}', '{"draw": [], "part": "final", "lr": {}, "epochs": []}', "[]", DEEP, '{"seconds": "x"}')
    with (again / "metrics.jsonl").open("a") as stream:
        stream.write("".join(f"{line}\n" for line in odd))
    words = ("--lr", "0.01", "--epochs", "1", "--labels-per-class", "4", "--device", "cpu", "--resume")
    done = byol("finetune", quick / "run", quick / "train", "--out", again, *words)
    assert done.code == 0, done.err
