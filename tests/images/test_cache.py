"""The cache of decoded images on full, read-only and shared places, and with what a stranger left in it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from byol.commands.cache import cache as cache_command
from byol.images.cache import META, CacheError, DecodedCache, home
from byol.images.open import open_source
from byol.training.data import decoded
from byol.training.data.decoded import load_canvases, open_images
from byol.training.data.intake import ImageTensor, StreamedImages
from tests.support.small import REPOSITORY, folder

WHOLE = {"name": "x", "images": 1, "shape": [1, 2, 2, 3], "listed": [], "unreadable": []}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(decoded, "SMALL", 0)
    made: Path = folder(tmp_path / "images")
    return made


def fill(disk: Path) -> None:
    with open(disk / "full", "wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


def expected(images: Path) -> ImageTensor:
    return load_canvases(open_source(images), 64)


def test_a_disk_that_fills_while_images_are_decoded_ends_no_process(images: Path, disk: Path, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from byol.training.data import decoded
from byol.images.cache import DecodedCache
from byol.training.data.decoded import load_canvases
from byol.images.open import open_source
from tests.images.test_cache import fill
decoded.SMALL = 0
full = []
def advance(count):
    if not full:
        fill(Path(sys.argv[2]))
        full.append(True)
got = load_canvases(open_source(sys.argv[1]), 64, advance, DecodedCache(Path(sys.argv[2]) / "cache", 10**9))
print(len(got), int(got.pixels.sum()))
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(images), str(disk)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, (done.returncode, done.stderr)  # -7 is SIGBUS
    assert done.stdout == f"20 {int(expected(images).pixels.sum())}\n"


def test_a_full_disk_costs_the_cache_alone(images: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(disk)
    monkeypatch.setattr(DecodedCache, "has_room", lambda *_: True)
    cache = DecodedCache(disk / "cache", 10**9)
    with pytest.warns(UserWarning, match="No space left on device; decoding images anew for each batch"):
        assert isinstance(open_images(open_source(images), 64, cache=cache), StreamedImages)
    with pytest.warns(UserWarning, match="No space left on device; decoding images for this run only"):
        got = load_canvases(open_source(images), 64, cache=cache)
    assert torch.equal(got.pixels, expected(images).pixels)
    assert not (disk / "cache").exists() or os.listdir(disk / "cache") == []


@pytest.mark.parametrize("kind", ["file", "dangling", "below a file", "read-only"])
def test_a_home_that_cannot_be_written_to_costs_the_cache_alone(
    images: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "home"
    if kind == "dangling":
        place.symlink_to("nowhere")
        (tmp_path / "nowhere").symlink_to("nowhere")
    elif kind == "read-only":
        place = request.getfixturevalue("disk")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    else:
        place.write_text("mine")
    monkeypatch.setenv("BYOL_HOME", str(place / "deeper" if kind == "below a file" else place))
    for load in (open_images, load_canvases):
        with pytest.warns(UserWarning, match="keeps no images"):
            got = load(open_source(images), 64, cache=DecodedCache())
        assert len(got) == 20
    assert CliRunner().invoke(cache_command, ["clear"]).exit_code == 0
    assert kind == "read-only" or kind == "dangling" or place.read_text() == "mine"


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("BYOL_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert not home().exists()
    with pytest.raises(CacheError), DecodedCache().create("k", 1):
        pass


# ----------------------------------------------------------------------------------------------------- one home

HOLD = """
import socket, sys
from pathlib import Path
from byol.images.cache import DecodedCache
socket.gethostname = lambda: "same"
with DecodedCache(Path(sys.argv[1]), 10**6).create("a", 10) as folder:
    (folder / "pixels.npy").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.readline()
"""


def test_what_another_container_writes_is_not_removed_whatever_its_process_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"
    command = [sys.executable, "-c", HOLD, str(root)]
    child = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    live = Path(child.stdout.readline().strip())

    def unknown(*_: object) -> None:
        raise ProcessLookupError  # the other container's numbers mean nothing here

    monkeypatch.setattr(os, "kill", unknown)
    os.utime(live, (0, 0))  # nor does its age
    with DecodedCache(root, 10**6).create("b", 10):
        assert (live / "pixels.npy").exists()
    assert DecodedCache(root, 10**6).clear() == 0
    assert (live / "pixels.npy").exists()
    monkeypatch.undo()
    child.kill()
    child.communicate()
    DecodedCache(root, 10**6).clear()
    assert not live.exists()


def test_what_an_earlier_version_left_goes_after_a_week(tmp_path: Path) -> None:
    for name, age in (("new", 1), ("old", 8 * 86_400)):
        (tmp_path / f".tmp-host-123-{name}").mkdir()
        seen = os.stat(tmp_path).st_mtime - age
        os.utime(tmp_path / f".tmp-host-123-{name}", (seen, seen))
    DecodedCache(tmp_path, 1).clear()
    assert os.listdir(tmp_path) == [".tmp-host-123-new"]


# ------------------------------------------------------------------------------------------------- what lies there


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        "{}",
        json.dumps(WHOLE | {"shape": [1, 2]}),
        json.dumps(WHOLE | {"shape": [1, True, 2, 3]}),
        json.dumps(WHOLE | {"images": "many"}),
        json.dumps(WHOLE | {"name": None}),
        json.dumps(WHOLE | {"listed": [{"path": "a", "reason": 3}]}),
        json.dumps(WHOLE | {"unreadable": [{"path": "a", "reason": "b", "more": 1}]}),
        json.dumps(WHOLE | {"unreadable": "ab"}),
        "\udcff",
    ],
)
def test_a_hostile_description_is_no_entry(images: Path, tmp_path: Path, text: str) -> None:
    cache = DecodedCache(tmp_path / "cache", 10**9)
    whole = load_canvases(open_source(images), 16, cache=cache)
    (entry,) = cache.entries()
    (entry.path / META).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert cache.entries() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_canvases(open_source(images), 16, cache=cache)
    assert torch.equal(again.pixels, whole.pixels)
    assert len(cache.entries()) == 1


def test_arrays_that_say_something_else_are_made_again(images: Path, tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path / "cache", 10**9)
    whole = load_canvases(open_source(images), 16, cache=cache)
    (entry,) = cache.entries()
    huge = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,)}".ljust(117)
    wrong: dict[str, np.ndarray] = {
        "indices.npy": np.arange(1000, 1020),
        "aspect.npy": np.ones(20, np.float64),
        "pixels.npy": np.zeros((20, 16, 16, 4), np.uint8),
    }
    for name, array in wrong.items():
        np.save(entry.path / name, array)
        assert torch.equal(load_canvases(open_source(images), 16, cache=cache).pixels, whole.pixels)
    (entry.path / "aspect.npy").write_bytes(huge + b"\n")
    assert len(load_canvases(open_source(images), 16, cache=cache)) == 20


@pytest.mark.parametrize("plant", ["link", "pipe", "link to a folder"])
def test_links_and_pipes_in_the_cache_are_no_entries(images: Path, tmp_path: Path, plant: str) -> None:
    cache = DecodedCache(tmp_path / "cache", 10**9)
    load_canvases(open_source(images), 16, cache=cache)
    (entry,) = cache.entries()
    victim = tmp_path / "victim"
    if plant == "link to a folder":
        os.rename(entry.path, victim)
        entry.path.symlink_to(victim)
    else:
        (entry.path / META).rename(victim)
        (entry.path / META).symlink_to(victim) if plant == "link" else os.mkfifo(entry.path / META)
    assert cache.entries() == []
    assert len(load_canvases(open_source(images), 16, cache=cache)) == 20
    assert victim.exists()
    assert not entry.path.is_symlink()


def test_clear_removes_entries_and_nothing_that_somebody_put_there(images: Path, tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path / "cache", 10**9)
    load_canvases(open_source(images), 16, cache=cache)
    (tmp_path / "cache" / "mine").mkdir()
    (tmp_path / "cache" / "mine" / META).write_text(json.dumps(WHOLE))
    (tmp_path / "cache" / "mine" / "thesis.txt").write_text("mine")
    assert cache.clear() > 0
    assert os.listdir(cache.root) == ["mine"]
    assert sorted(os.listdir(cache.root / "mine")) == [META, "thesis.txt"]


def test_names_in_the_cache_are_shown_on_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOL_HOME", str(tmp_path))
    with DecodedCache().create("k", 10) as entry:
        (entry / META).write_text(json.dumps(WHOLE | {"name": "a\x1b[2J\nb\ud800"}))
    shown = CliRunner().invoke(cache_command, [])
    assert shown.exit_code == 0
    assert "  k  a\\x1b[2J\\nb\\ud800: 1 images at 2 px" in shown.output


def test_one_entry_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BYOL_HOME", str(tmp_path))
    for key, size in (("aa11", 2_000_000), ("aa22", 3_000_000), ("bb11", 1)):
        with DecodedCache(limit=10**10).create(key, 10) as entry:
            (entry / META).write_text(json.dumps(WHOLE))
            (entry / "pixels.npy").write_bytes(bytes(size))
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in said[:2]] == [
        "kept 2 MB of decoded images for later runs",
        "kept 3 MB of decoded images for later runs",
    ]
    assert "`byol cache` lists all entries (5 MB, limit 10 GB); `byol cache clear` removes them" in said[1]
    for key, why in (
        ("aa", "several entries have"),
        ("c", "'c'; `byol cache` lists the keys"),
        ("", "several entries have"),
    ):
        done = CliRunner().invoke(cache_command, ["clear", "bb", key])
        assert (done.exit_code, why in done.output) == (2, True)
    assert CliRunner().invoke(cache_command, ["clear", "aa2", "bb11"]).exit_code == 0
    assert [entry.path.name for entry in DecodedCache().entries()] == ["aa11"]
