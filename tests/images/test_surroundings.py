"""Disks that vanish, folders that cannot be listed, files and memory that run out: no image is left out for it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol.files import regular
from byol.files.regular import SourceUnavailable
from byol.images import surroundings
from byol.images.decode import decode
from byol.images.folder import LocalTree
from byol.images.open import open_place, open_source
from byol.images.picture import read as decoding
from byol.images.picture.read import read_image
from byol.images.surroundings import Anchors, UnreadableImage
from byol.serve import Encoder
from byol.serve.extract import processes
from byol.serve.extract.engine import Options
from byol.serve.extract.ray_engine import _readable
from byol.serve.extract.resumable import Share, Task
from byol.serve.features.parts import PartsFolder
from tests.support.command_line import Outcome, byol
from tests.support.folders import contents
from tests.support.small import REPOSITORY
from tests.support.tiny import write_images, write_tiny_bundle

PART = 5
LINUX_ROOT = sys.platform == "linux" and os.geteuid() == 0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", {"cat": 12, "dog": 12})


def extract(bundle: Path, images: object, out: Path, *more: object) -> Outcome:
    words = ("--device", "cpu", "--part-images", PART, "--batch-size", 4, "--decode-threads", 1)
    return byol("extract", bundle, images, "--out", f"{out}/", *words, *more)


def is_complete(out: Path) -> bool:
    manifest = out / "_manifest.json"
    return manifest.exists() and bool(json.loads(manifest.read_text())["complete"])


@contextmanager
def at_picture(number: int, act: Callable[[Path], object]) -> Iterator[None]:
    """Do something right before so many pictures are read."""
    calls, real = itertools.count(), regular.read_regular

    def read(path: bytes, most: int) -> bytes:
        if next(calls) == number:
            act(Path(os.fsdecode(path)))
        return real(path, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surroundings, "read_regular", read)
        yield


def fails(code: int) -> Callable[[Path], object]:
    def act(path: Path) -> object:
        raise OSError(code, os.strerror(code), str(path))

    return act


# ------------------------------------------------------------------------------------------------- extraction


def removed(root: Path) -> None:
    root.rename(root.with_name("away"))


def unmounted(root: Path) -> None:
    removed(root)
    root.mkdir()


def exchanged(root: Path) -> None:
    removed(root)
    write_images(root, {"cat": 9, "other": 9}, seed=1)


@pytest.mark.parametrize("happens", [removed, unmounted, exchanged])
@pytest.mark.parametrize("listed", [False, True])
def test_a_root_that_goes_stops_the_work_which_goes_on_when_it_is_back(
    bundle: Path, images: Path, tmp_path: Path, happens: Callable[[Path], None], listed: bool
) -> None:
    source = images
    if listed:
        source = tmp_path / "list.txt"
        source.write_text("".join(f"{path}\n" for path in sorted(images.rglob("*.png"))))
    assert extract(bundle, source, tmp_path / "whole").code == 0
    with at_picture(13, lambda _: happens(images)):
        stopped = extract(bundle, source, tmp_path / "out")
    assert stopped.code == 1
    assert str(images) in stopped.err
    assert "run the same command again" in stopped.err
    assert "Traceback" not in stopped.err
    assert not is_complete(tmp_path / "out")
    assert not (tmp_path / "out" / "_errors" / "errors.parquet").exists()
    before = contents(tmp_path / "out")
    if happens is not exchanged:  # given again too early; a folder of other images is a folder that changed
        assert extract(bundle, source, tmp_path / "out").code == 1
        assert not is_complete(tmp_path / "out")
        assert contents(tmp_path / "out") == before
    shutil.rmtree(images, ignore_errors=True)
    (tmp_path / "away").rename(images)
    assert extract(bundle, source, tmp_path / "out").code == 0
    found, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert found == whole


@pytest.mark.parametrize("code", ["EIO", "ESTALE", "ENOTCONN", "EMFILE", "ENFILE", "ENOMEM", "ETIMEDOUT", "EHOSTDOWN"])
def test_an_error_of_the_system_stops_the_work(bundle: Path, images: Path, tmp_path: Path, code: str) -> None:
    with at_picture(13, fails(getattr(errno, code))):
        stopped = extract(bundle, images, tmp_path / "out", "--max-errors", 1000)
    assert stopped.code == 1
    assert os.strerror(getattr(errno, code)) in stopped.err
    assert "dog/001.png" in stopped.err
    assert extract(bundle, images, tmp_path / "out").code == 0
    assert is_complete(tmp_path / "out")
    assert not (tmp_path / "out" / "_errors" / "errors.parquet").exists()


@pytest.mark.parametrize("code", ["ENOENT", "EACCES", "EPERM", "ELOOP", "ENAMETOOLONG"])
def test_a_file_s_own_error_leaves_it_out_while_its_folder_is_the_same(
    bundle: Path, images: Path, tmp_path: Path, code: str
) -> None:
    with at_picture(13, fails(getattr(errno, code))):
        done = extract(bundle, images, tmp_path / "out")
    assert done.code == 0
    assert "dog/001.png" in done.err
    assert is_complete(tmp_path / "out")


def test_no_memory_is_no_image_s_fault(bundle: Path, images: Path, tmp_path: Path) -> None:
    def decoded(*_: object) -> Image.Image:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_decoded", decoded)
        stopped = extract(bundle, images, tmp_path / "out")
    assert stopped.code == 1
    assert "not enough memory" in stopped.err
    assert extract(bundle, images, tmp_path / "out").code == 0


def test_open_files_that_run_out_are_no_image_s_fault(images: Path) -> None:
    program = (
        "import os, resource, sys\nfrom pathlib import Path\n"
        "from byol.images.surroundings import SourceUnavailable, UnreadableImage\n"
        "from byol.images.open import open_source\n"
        "source = open_source(Path(sys.argv[1])); source.open(0)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); held = []\n"
        "try:\n    while True: held.append(os.open('/dev/null', os.O_RDONLY))\nexcept OSError: pass\n"
        "try: source.open(1)\nexcept UnreadableImage as e: print('booked', e)\n"
        "except SourceUnavailable as e: print(e)\n"
        "try: open_source(Path(sys.argv[1]))\nexcept SourceUnavailable as e: print(e)\n"
    )
    command = [sys.executable, "-c", program, str(images)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
    assert done.stdout.count("Too many open files") == 2, done.stderr
    assert "booked" not in done.stdout


def test_a_picture_larger_than_the_limit_is_its_own_fault(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "cat" / "000.png").write_bytes(b"\0" * 1_100_000)
    monkeypatch.setenv("BYOL_MAX_PICTURE_MB", "1")
    with pytest.raises(UnreadableImage, match="larger than 1,048,576 bytes"):
        open_source(images).open(0)


def test_a_limit_that_is_none_is_no_image_s_fault(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOL_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="BYOL_MAX_PIXELS is 'many'"):
        list(decode(open_source(images), np.asarray))


def test_evaluation_and_classes_in_memory_stop_too(bundle: Path, images: Path, tmp_path: Path) -> None:
    for words in (
        ("knn", bundle, "--train", images, "--test", images, "--k", 1),
        ("linear", bundle, "--train", images, "--test", images),
        ("neighbors", bundle, "--bank", images, "--query", images),
        ("duplicates", bundle, images, "--out", tmp_path / "f.pairs.parquet"),
        ("extract", bundle, images, "--out", tmp_path / "f.parquet"),
    ):
        with at_picture(13, fails(errno.EIO)):
            stopped = byol(*words, "--device", "cpu")
        assert (stopped.code, stopped.out) == (1, ""), words
        assert "Input/output error" in stopped.err
    assert not list(tmp_path.glob("f.*"))
    encoder = Encoder(bundle, device="cpu")
    with at_picture(13, fails(errno.EIO)), pytest.raises(SourceUnavailable, match="Input/output"):
        list(encoder.stream(images))
    with at_picture(1, fails(errno.EIO)), pytest.raises(SourceUnavailable, match="Input/output"):
        encoder([images / "cat" / "000.png", images / "cat" / "001.png"])


def test_workers_tell_whose_fault_it_was(bundle: Path, images: Path, tmp_path: Path) -> None:
    messages: queue.Queue[tuple[int, str, object]] = queue.Queue()
    crew = processes.Crew(1, 0, bundle, "cpu", None, "fp32")
    task = Task(images, tmp_path / "out", Options(), PART)
    encoder = Encoder(bundle, device="cpu")
    (tmp_path / "out").mkdir()
    task.folder(encoder.digest, encoder.feature_dim).begin(None)
    with pytest.MonkeyPatch.context() as patch, at_picture(7, fails(errno.EIO)):
        patch.setattr("signal.signal", lambda *_: None)
        patch.setattr(processes, "_take_share_of_machine", lambda *_: None)
        processes._work(crew, task, Share(), messages)
    *_, (_, kind, error) = messages.queue
    assert kind == "failed"
    assert isinstance(error, SourceUnavailable)


def test_ray_s_wrapping_keeps_whose_fault_it_was() -> None:
    wrapped = RuntimeError("task failed")
    wrapped.__cause__ = SourceUnavailable("photos is gone")
    assert isinstance(_readable(wrapped), SourceUnavailable)


# ---------------------------------------------------------------------------------------------------- listing


def refusing(name: str, code: int) -> pytest.MonkeyPatch:
    patch, scandir = pytest.MonkeyPatch(), os.scandir

    def refuse(path: object) -> object:
        if os.fsdecode(path).endswith(name):  # type: ignore[arg-type]
            raise OSError(code, os.strerror(code), path)
        return scandir(path)  # type: ignore[call-overload]

    patch.setattr(os, "scandir", refuse)
    return patch


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_folder_that_cannot_be_listed_stops_the_work(bundle: Path, images: Path, tmp_path: Path, code: int) -> None:
    assert extract(bundle, images, tmp_path / "whole").code == 0
    patch = refusing("dog", code)
    try:
        stopped = extract(bundle, images, tmp_path / "out")
        other = byol("knn", bundle, "--train", images, "--test", images, "--k", 1, "--device", "cpu")
    finally:
        patch.undo()
    for done in (stopped, other):
        assert done.code == 1
        assert os.strerror(code) in done.err
        assert "images/dog" in done.err
        assert ("make it readable" in done.err) == (code == errno.EACCES)
    assert not is_complete(tmp_path / "out")
    assert extract(bundle, images, tmp_path / "out").code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_system_s_own_folders_are_passed_over_by_name(bundle: Path, images: Path, tmp_path: Path) -> None:
    """Whether they may be entered or not: a NAS has thumbnails beside each photograph, and what was deleted."""
    before = open_source(images)
    (images / "lost+found").mkdir()
    write_images(images / "cat", {"@eaDir": 2})
    write_images(images, {"#recycle": 1})
    patch = refusing("lost+found", errno.EACCES)
    try:
        done = extract(bundle, images, tmp_path / "out")
    finally:
        patch.undo()
    assert done.code == 0
    lines = [line for line in done.err.splitlines() if "of the system's own" in line]
    assert lines == [
        "  #recycle: a folder of the system's own, for deleted files, thumbnails or snapshots, like 2 more"
    ]  # of several parts
    after = open_source(images)
    assert (list(after.ids), after.classes) == (list(before.ids), before.classes)


@pytest.mark.skipif(not LINUX_ROOT, reason="needs to become somebody else")
def test_real_permissions(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images.parent)
    images.parent.chmod(0o755)
    (images / "dog").chmod(0o700)
    (images / "cat" / "001.png").chmod(0)
    os.seteuid(65_534)
    try:
        with pytest.raises(SourceUnavailable, match=r"images/dog cannot be listed.*make it readable"):
            open_source(Path("images"))
        source = open_source(Path("images/cat"))
        results = [result for _, result in decode(source, np.asarray)]
    finally:
        os.seteuid(0)
    assert [str(result) for result in results if isinstance(result, UnreadableImage)] == ["Permission denied"]
    assert len(results) == 12


def test_a_folder_that_just_vanished_is_named_while_the_root_is_the_same(images: Path) -> None:
    skipped: list[tuple[bytes, str]] = []
    walk = LocalTree(images).walk(lambda path, reason: skipped.append((path, reason)))
    first = next(walk)
    shutil.rmtree(images / "dog")
    assert len([first, *walk]) == 12
    assert skipped == [(b"dog", "No such file or directory")]


def test_a_root_that_vanishes_while_it_is_listed_stops_the_work(images: Path) -> None:
    walk = LocalTree(images).walk(lambda *_: None)
    next(walk)
    images.rename(images.with_name("away"))
    with pytest.raises(SourceUnavailable, match="No such file"):
        list(walk)


def test_links_that_may_have_been_folders_are_named(images: Path) -> None:
    (images / "owl").symlink_to(images.parent / "unmounted" / "owl")
    (images / "notes.txt").symlink_to("nowhere.txt")
    source = open_source(images)
    assert [(item.path, item.reason) for item in source.skipped] == [("owl", "a broken symbolic link")]


def test_folders_deeper_than_python_calls(tmp_path: Path) -> None:
    depth, start, most = 400, os.getcwd(), sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(300)
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Image.new("RGB", (4, 4)).save("a.png")
        os.chdir(start)
        source = open_source(tmp_path)
        assert list(source.ids) == ["d/" * depth + "a.png"]
        assert source.open(0).size == (4, 4)
    finally:
        sys.setrecursionlimit(most)
        os.chdir(start)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True, timeout=60)


@pytest.mark.parametrize("call", ["stat", "content_stamp"])
def test_a_stamp_is_not_made_of_a_failing_disk(images: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    source, real = open_source(images), os.stat

    def stat(path: object, **options: object) -> object:
        if call == "stat" and os.fsdecode(path).endswith("dog/003.png"):  # type: ignore[arg-type]
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)
    if call == "content_stamp":
        monkeypatch.setattr("byol.images.stamps.content_stamp", fails(errno.ESTALE))
    assert source.stamp is not None
    with pytest.raises(SourceUnavailable):
        source.stamp()


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_a_failing_disk_makes_no_npz_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    np.savez(tmp_path / "n.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    monkeypatch.setattr(
        f"byol.images.{'open.open_arrays' if code == errno.EIO else 'shards.listing.open_file'}", fails(code)
    )
    with pytest.raises(SourceUnavailable, match=rf"n.npz cannot be read: {os.strerror(code)}; finished work is kept"):
        open_source(tmp_path / "n.npz")


# ------------------------------------------------------------------------------------------------------ lists


def test_one_missing_line_is_left_out(bundle: Path, images: Path, tmp_path: Path) -> None:
    lines = [*sorted(images.rglob("*.png")), images / "dog" / "none.png", images / "gone" / "a.png"]
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in lines))
    done = extract(bundle, tmp_path / "list.txt", tmp_path / "out")
    assert done.code == 0
    assert done.err.count("No such file") == 2


def test_anchors_hold_what_was_found_and_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "b" / "x.png")
    folder = os.fsencode(tmp_path / "a" / "b")
    anchors = Anchors()
    anchors.note_parents(folder + b"/x.png")
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(folder + b"/y.png", anchors)
    (tmp_path / "a" / "b" / "x.png").unlink()
    with pytest.raises(SourceUnavailable, match="is its disk mounted"):
        read_image(folder + b"/y.png", anchors)
    missing = Anchors()
    missing.expect(os.fsencode(tmp_path / "unmounted"))
    with pytest.raises(SourceUnavailable, match="No such file"):
        read_image(tmp_path / "unmounted" / "x.png", missing)


@pytest.mark.skipif(not LINUX_ROOT, reason="only root mounts")
@pytest.mark.parametrize("listed", [False, True])
def test_a_file_system_that_is_unmounted(tmp_path: Path, listed: bool) -> None:
    """Two of them below one folder, of which one goes: the folder is the same all the while."""
    disk, here = tmp_path / "images" / "disk", write_images(tmp_path / "images", {"a": 2})
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write_images(disk, {"b": 3})
        paths = sorted(here.rglob("*.png"))
        (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
        source = open_source(tmp_path / "list.txt" if listed else here)
        for i in range(3):
            source.open(i)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    with pytest.raises(SourceUnavailable):
        source.open(4)
    (here / "a" / "001.png").unlink()
    with pytest.raises(UnreadableImage):
        source.open(1)


# ---------------------------------------------------------------------------------------------- retry skipped


def damage(images: Path) -> dict[Path, bytes]:
    """Damage pictures of the second and the last part; what was there."""
    paths = [images / "cat" / "007.png", images / "dog" / "011.png"]
    good = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.write_bytes(b"broken")
    return good


def mend(good: dict[Path, bytes]) -> None:
    for path, content in good.items():
        path.write_bytes(content)


@pytest.mark.parametrize("more", [(), ("--processes", 2)])
def test_what_was_left_out_and_is_mended_is_extracted(
    bundle: Path, images: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    assert extract(bundle, images, tmp_path / "whole").code == 0
    good, out = damage(images), tmp_path / "out"
    assert extract(bundle, images, out).code == 0
    kept = {path.name: path.stat().st_ino for path in (out / "data").iterdir()}
    mend(good)
    done = extract(bundle, images, out)
    assert "nothing left to do" in done.err
    assert extract(bundle, images, out, "--retry-skipped", *more).code == 0
    assert contents(out) == contents(tmp_path / "whole")
    made = sorted(name for name, number in kept.items() if (out / "data" / name).stat().st_ino != number)
    assert made == ["part-00001.parquet", "part-00004.parquet"]
    done = extract(bundle, images, out, "--retry-skipped")
    assert "nothing left to do" in done.err


def test_a_retry_that_stops_is_gone_on_with(bundle: Path, images: Path, tmp_path: Path) -> None:
    assert extract(bundle, images, tmp_path / "whole").code == 0
    good, out = damage(images), tmp_path / "out"
    assert extract(bundle, images, out).code == 0
    mend(good)
    before = contents(out)
    with at_picture(7, fails(errno.EIO)):
        assert extract(bundle, images, out, "--retry-skipped").code == 1
    assert not is_complete(out)
    changed = {name for name, content in contents(out).items() if content != before[name] and "part" in name}
    assert changed <= {"data/part-00001.parquet"}  # and that one only if it was written before the last one was decoded
    assert extract(bundle, images, out, "--retry-skipped").code == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_retry_takes_in_what_is_new_in_its_part_and_moves_no_other(
    bundle: Path, images: Path, tmp_path: Path
) -> None:
    (images / "cat" / "006.heic").write_bytes(b"not read")
    out = tmp_path / "out"
    assert extract(bundle, images, out).code == 0
    (images / "cat" / "006.heic").unlink()
    shutil.copy(images / "cat" / "000.png", images / "cat" / "0061.png")
    assert extract(bundle, images, out, "--retry-skipped").code == 0
    parts = PartsFolder(out, {"bundle_sha256": Encoder(bundle, device="cpu").digest}).finished()
    assert [part.rows for part in parts.values()] == [5, 6, 5, 5, 4]
    assert not (out / "_errors" / "errors.parquet").exists()


def test_a_file_has_nothing_to_retry(bundle: Path, images: Path, tmp_path: Path) -> None:
    done = byol("extract", bundle, images, "--out", tmp_path / "f.parquet", "--retry-skipped")
    assert done.code == 2
    assert "folder of parts" in done.err


# --------------------------------------------------------------------------------------------------- training


def test_a_streamed_run_whose_disk_goes_has_saved_its_last_step_and_goes_on_exactly(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    torch = pytest.importorskip("torch")
    from byol.training.checkpoint import read_checkpoint
    from tests.support.runs import run_training
    from tests.support.small import config

    monkeypatch.setattr("byol.training.data.decoded.SMALL", 0)
    monkeypatch.setenv("BYOL_CACHE_GB", "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker for so little, and on a busy machine
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    settings = config(max_steps=6, checkpoint_every=100)
    run_training(settings, images, tmp_path / "whole")
    with at_picture(44, lambda _: removed(images)), pytest.raises(SourceUnavailable, match="with --resume: step"):
        run_training(settings, images, tmp_path / "run")
    saved = read_checkpoint(tmp_path / "run" / "last.safetensors").step
    assert saved == 4  # batches are fetched ahead; the fifth one failed
    with pytest.raises(ValueError, match="does not exist"):
        run_training(settings, images, tmp_path / "run", resume=True)
    (tmp_path / "away").rename(images)
    run_training(settings, images, tmp_path / "run", resume=True)
    found, whole = (read_checkpoint(tmp_path / name / "last.safetensors") for name in ("run", "whole"))
    assert found.step == whole.step == 6
    assert all(torch.equal(value, whole.tensors[key]) for key, value in found.tensors.items())


def test_nothing_of_a_source_that_went_is_kept_in_the_cache(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from byol.images.cache import DecodedCache
    from byol.training.data.decoded import canvas_side, load_canvases

    monkeypatch.setattr("byol.training.data.decoded.SMALL", 0)
    cache = DecodedCache(tmp_path / "cache", 1 << 30)
    source = open_source(images)
    with at_picture(13, lambda _: removed(images)), pytest.raises(SourceUnavailable):
        load_canvases(source, 16, cache=cache)
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(SourceUnavailable):
        canvas_side(source, 16)
    (tmp_path / "away").rename(images)
    assert len(load_canvases(open_source(images), 16, cache=cache)) == 24


def test_relative_lines_start_where_the_command_was_given_also_in_another_process(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of a Ray cluster runs in a folder of its own."""
    (tmp_path / "list.txt").write_text("images/cat/000.png\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = open_place(tmp_path / "list.txt", 0, os.fsencode(tmp_path))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(read_image(images / "cat" / "000.png")))
