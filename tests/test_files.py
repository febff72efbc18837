"""What is written takes its name whole, replaces nothing else, and has one writer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from byol.files import atomic_file, atomic_folder, require_folder_place
from byol.serve.bundle import require_place
from tests.tiny import write_tiny_bundle

HOLD = """
import sys
from byol.files import {kind}
with {kind}(sys.argv[1]) as place:
    (place / "a" if place.is_dir() else place).write_text("first")
    print("at work", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(request):
    """Start a process that is in the middle of writing to a path; `release` lets it finish."""
    children = []

    def start(kind, path):
        command = [sys.executable, "-c", HOLD.format(kind=kind), path]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"at work\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(("kind", "write"), [("atomic_file", atomic_file), ("atomic_folder", atomic_folder)])
def test_a_second_writer_is_refused_and_the_first_finishes(tmp_path, hold, kind, write):
    child = hold(kind, tmp_path / "out")
    with pytest.raises(BlockingIOError, match=r"another process is writing .*out; wait"), write(tmp_path / "out"):
        pass
    child.communicate(b"\n")
    assert child.returncode == 0
    written = tmp_path / "out" / "a" if kind == "atomic_folder" else tmp_path / "out"
    assert written.read_text() == "first"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("kind", "write"), [("atomic_file", atomic_file), ("atomic_folder", atomic_folder)])
def test_what_a_killed_writer_leaves_is_no_obstacle(tmp_path, hold, kind, write):
    child = hold(kind, tmp_path / "out")
    child.kill()
    child.wait()
    with write(tmp_path / "out") as place:
        (place / "b" if kind == "atomic_folder" else place).write_text("second")
    assert os.listdir(tmp_path) == ["out"]
    assert kind == "atomic_file" or os.listdir(tmp_path / "out") == ["b"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()

    def fail():
        with atomic_folder(tmp_path / "out") as place:
            (place / "new").touch()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["out", "out/old"]


def test_behind_a_link_the_folder_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "current").symlink_to("v1")
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "current") as place:
            (place / name).touch()
        assert (tmp_path / "current").is_symlink()
        assert os.listdir(tmp_path / "v1") == [name]
    assert sorted(os.listdir(tmp_path)) == ["current", "v1"]


def test_places_where_no_folder_can_be_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "in" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "here")
    for path, message in {
        tmp_path / "file": "is a file",
        tmp_path / "file" / "x": "file is no folder that can be written to",
        Path("."): "the folder that this runs in",
        tmp_path / "in": "the folder that this runs in",
        Path("/proc"): "is a mount point",
    }.items():
        with pytest.raises(ValueError, match=message):
            require_folder_place(path)
    require_folder_place(tmp_path / "new" / "deep")


@pytest.mark.parametrize("name", [".git", "notes.txt", "encoder.fp16.onnx"])
def test_a_bundle_with_something_beside_it_is_not_replaced(tmp_path, name):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    require_place(bundle)
    (bundle / name).mkdir()
    with pytest.raises(ValueError, match=f"holds more than a bundle \\({name}\\)"):
        require_place(bundle)


def test_other_peoples_manifests_are_not_replaced(tmp_path):
    (tmp_path / "webapp").mkdir()
    for text in ('{"name": "my app"}', "{", '{"schema_version": 1, "files": []}'):
        (tmp_path / "webapp" / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="exists and is no bundle"):
            require_place(tmp_path / "webapp")
