"""Results in a folder that is given, as a container gets one: nothing may be written beside it, nor may it be replaced.

And results beside what they are made from: nothing that byol wrote is taken for an image.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byol import outputs
from byol.bundle.folder import Bundle, require_place
from byol.files.atomic import atomic_folder, contents, is_half_filled
from byol.files.places import is_mount, must_stay
from byol.images.open import open_source
from byol.outputs import require_output, require_output_folder
from byol.run import OWN_VIEWS
from byol.serve.proof import verify
from tests.support.command_line import byol
from tests.support.folders import contents as files_below
from tests.support.inputs.shards import write_tar
from tests.support.small import REPOSITORY
from tests.support.tiny import write_images, write_tiny_bundle

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle and labelled images."""
    root = tmp_path_factory.mktemp("place")
    write_tiny_bundle(root / "bundle")
    write_images(root / "train", {"cat": 6, "dog": 6})
    write_images(root / "test", {"cat": 3, "dog": 3}, seed=1)
    return root


@pytest.fixture
def given(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that may be written to, in one that may not."""
    above = tmp_path / "above"
    out = above / "out"
    out.mkdir(parents=True)
    if os.geteuid():
        above.chmod(0o555)
        yield out
        above.chmod(0o755)
        return
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", above], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", out], check=True)
    subprocess.run(["mount", "-o", "remount,ro", above], check=True)
    yield out
    subprocess.run(["umount", out, above], check=True)


def write_bundle(out: Path) -> None:
    with atomic_folder(out, "manifest.json") as folder:
        write_tiny_bundle(folder)


# --------------------------------------------------------------------------------------------- what is given


def test_a_run_is_trained_and_gone_on_with(given: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from byol.training.run_folder import RunFolder
    from tests.support.runs import run_training
    from tests.support.small import config, folder

    images = folder(tmp_path / "images", per_class=4)
    (given / "lost+found").mkdir()  # of a new disk
    run_training(config(max_steps=1), images, given)
    run_training(config(max_steps=1), images, given, resume=True)
    assert "last.safetensors" in os.listdir(given)
    with RunFolder(given).alone(), pytest.raises(BlockingIOError, match="another process is writing"):
        run_training(config(max_steps=1), images, given, resume=True)


@pytest.mark.parametrize("name", ["", "f.parquet", "f.npz"])
def test_features_are_extracted(place: Path, given: Path, name: str) -> None:
    for _ in range(2):
        done = byol("extract", place / "bundle", place / "test", "--out", f"{given}/{name}", *CPU)
        assert done.code == 0, done.err
    assert contents(given) == ({name} if name else {"_manifest.json", "data"})


def test_a_bundle_is_written_and_written_again(place: Path, given: Path) -> None:
    for _ in range(2):
        words = ("--train", place / "train", "--test", place / "test", "--save-classifier", given, *CPU)
        done = byol("linear", place / "bundle", *words)
        assert done.code == 0, done.err
        assert contents(given) == {"manifest.json", *Bundle.open(given).manifest.files} == set(os.listdir(given))
        assert verify(given).problems == []
    write_bundle(given)  # with fewer files
    assert contents(given) == {"manifest.json", *Bundle.open(given).manifest.files}


def test_what_is_no_bundle_is_not_filled(given: Path) -> None:
    (given / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a bundle"):
        require_place(given)


def test_a_writer_killed_while_it_fills_leaves_what_the_next_one_replaces(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(given)
    real, moved = os.replace, list[str]()

    def killed(source: Path, target: Path) -> None:
        if target.parent == given and len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target.name)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("byol.files.atomic.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_bundle(given)
    assert is_half_filled(given)
    assert "manifest.json" not in os.listdir(given)  # so that nobody reads files of two bundles as one
    require_place(given)
    write_bundle(given)
    assert verify(given).problems == []
    assert contents(given) == set(os.listdir(given))


def test_a_failure_before_it_is_filled_changes_nothing(given: Path) -> None:
    write_bundle(given)
    before = {name: (given / name).read_bytes() for name in os.listdir(given)}
    with contextlib.suppress(InterruptedError), atomic_folder(given, "manifest.json") as folder:
        (folder / "manifest.json").touch()
        raise InterruptedError
    assert {name: (given / name).read_bytes() for name in os.listdir(given)} == before


HOLD = """
import sys
from pathlib import Path
from byol.files.atomic import atomic_folder
with atomic_folder(sys.argv[1], "a") as place:
    (place / "a").write_text("first")
    print("at work", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("seen_as", ["given", "any other"])
def test_it_has_one_writer_also_where_another_one_could_replace_it(
    given: Path, seen_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same folder may be a mount point in a container, and a usual one outside of it."""
    command = [sys.executable, "-c", HOLD, str(given)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "at work\n"
        if seen_as == "any other":
            monkeypatch.setattr("byol.files.atomic.must_stay", lambda _: False)
            monkeypatch.setattr("byol.files.atomic.only_writer", lambda _: contextlib.nullcontext(True))
        with pytest.raises(BlockingIOError, match="another process is writing"), atomic_folder(given, "a"):
            pass
        child.communicate("\n")
    assert os.listdir(given) == ["a"]


def test_the_folder_that_a_command_runs_in_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    require_place(Path("."))
    write_bundle(Path("."))
    assert verify(tmp_path / "here").problems == []
    assert os.listdir(tmp_path) == ["here"]


def test_places_that_take_nothing_are_refused(given: Path) -> None:
    for out in (given.parent, given.parent / "new"):
        with pytest.raises(ValueError, match=r"(is not writable|cannot be created: .*above is not a writable folder)"):
            require_output_folder(out)
    with pytest.raises(ValueError, match=r"cannot be created: .*above is not a writable folder"):
        require_output(given.parent / "f.parquet", outputs.FEATURES)
    require_output(given / "f.parquet", outputs.FEATURES)
    require_output_folder(given)
    assert must_stay(given)


def test_mount_points_of_files_and_of_the_same_disk_are_known(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "file.parquet").touch()
    (tmp_path / "inner").mkdir()
    assert not is_mount(tmp_path / "inner")
    for source, target in (("a b", "inner"), ("file.parquet", "mounted.parquet"), ("a b", "a b")):
        (tmp_path / target).touch() if target.endswith("t") else None
        if subprocess.run(["mount", "--bind", tmp_path / source, tmp_path / target], capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        try:
            assert is_mount(tmp_path / target)
            if target.endswith("t"):
                with pytest.raises(ValueError, match="is a mount point and cannot be replaced"):
                    require_output(tmp_path / target, outputs.FEATURES)
        finally:
            subprocess.run(["umount", tmp_path / target], check=True)


# -------------------------------------------------------------------------------------- beside what is read


def run_in(folder: Path) -> None:
    """What a training leaves in a folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {}, "versions": {"byol": "0.1.0"}}))
    Image.new("RGB", (8, 8)).save(folder / "views.png")


def test_a_run_in_its_own_images_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.support.runs import run_training
    from tests.support.small import config, folder

    images = folder(tmp_path / "images", per_class=4)
    run_training(config(max_steps=1), images, images / "run")
    assert (images / "run" / "views.png").exists()
    run_training(config(max_steps=1), images, images / "run", resume=True)
    run_training(config(max_steps=1), images, images / "second")
    stored = json.loads((images / "second" / "config.json").read_text())
    assert stored["data"]["images"] == 8
    assert stored["skipped"] == [{"path": "run/views.png", "reason": OWN_VIEWS, "row": None}]


@pytest.mark.parametrize("config", [None, "[]", "{}", '{"versions": {"mine": "1"}}'])
def test_somebodys_views_are_an_image(tmp_path: Path, config: str | None) -> None:
    run_in(tmp_path / "holiday")
    if config is None:
        (tmp_path / "holiday" / "config.json").unlink()
    else:
        (tmp_path / "holiday" / "config.json").write_text(config)
    assert list(open_source(tmp_path).ids) == ["holiday/views.png"]


def test_a_run_among_shards_makes_them_no_folder_of_images(tmp_path: Path) -> None:
    pixels = write_images(tmp_path / "images", {"a": 2})
    content = [path.read_bytes() for path in sorted(pixels.rglob("*.png"))]
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table({"image": content}), tmp_path / "shards" / "a.parquet")
    run_in(tmp_path / "shards" / "run")
    assert list(open_source(tmp_path / "shards").ids) == ["a.parquet/0", "a.parquet/1"]


@pytest.mark.parametrize("more", [(), ("--thumbnails", 16)], ids=["plain", "with pictures"])
def test_features_among_the_shards_that_they_are_made_from_are_no_shards(
    place: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    content = [path.read_bytes() for path in sorted((place / "train").rglob("*.png"))]
    content[3] = b"broken"
    shards = tmp_path / "shards"
    shards.mkdir()
    pq.write_table(pa.table({"image": content}), shards / "a.parquet")
    before = open_source(shards)
    assert before.stamp is not None
    stamp = before.stamp()
    extract = ("extract", place / "bundle", shards, "--out", shards / "features", "--part-images", 5, *CPU, *more)
    assert byol(*extract).code == 0
    whole = files_below(shards / "features")
    (shards / "features" / "data" / "part-00002.parquet").unlink()
    manifest = json.loads(whole["_manifest.json"])
    (shards / "features" / "_manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    assert byol(*extract).code == 0
    assert byol(*extract, "--retry-skipped").code == 0
    assert files_below(shards / "features") == whole
    for name in ("one.parquet", "one.parquet"):
        assert byol("extract", place / "bundle", shards, "--out", shards / name, *CPU, *more).code == 0
    after = open_source(shards)
    assert after.stamp is not None
    assert (list(after.ids), list(after.skipped), after.stamp()) == (list(before.ids), [], stamp)
    with pytest.raises(ValueError, match="holds byol results, not images"):
        open_source(shards / "features")
    write_tar(tmp_path / "shards" / "b.tar", {"x.png": content[0]})
    (shards / "a.parquet").unlink()  # beside archives, tables without images are left out
    assert list(open_source(shards).ids) == ["x.png"]


@pytest.mark.parametrize("spelling", ["plain", "link", "url"])
def test_a_grid_in_a_folder_that_it_shows_is_refused(place: Path, tmp_path: Path, spelling: str) -> None:
    bank = place / "train"
    (tmp_path / "link").symlink_to(bank)
    grid = (tmp_path / "link" if spelling == "link" else bank) / "cat" / "grid.png"
    given: object = f"file://{bank}" if spelling == "url" else bank
    words = ("--bank", given, "--query", place / "test", "--grid", grid, *CPU)
    done = byol("neighbors", place / "bundle", *words)
    assert (done.code, "would become an image of" in done.err) == (2, True), done.err
    assert not grid.exists()
    outside = ("--bank", bank, "--query", place / "test", "--grid", place / "grid.png", *CPU)
    assert byol("neighbors", place / "bundle", *outside).code == 0


def test_views_copied_to_a_server_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOL_PROTOCOLS", "file")
    write_images(tmp_path / "images", {"a": 2})
    run_in(tmp_path / "images" / "run")
    source = open_source(f"file://{tmp_path}/images")
    assert list(source.ids) == ["a/000.png", "a/001.png"]
    assert [(item.path, item.reason) for item in source.skipped] == [("run/views.png", OWN_VIEWS)]
    (tmp_path / "images" / "run" / "config.json").write_text("{}")
    assert len(open_source(f"file://{tmp_path}/images")) == 3
    assert np.asarray(open_source(f"file://{tmp_path}/images").open(2)).shape == (8, 8, 3)
