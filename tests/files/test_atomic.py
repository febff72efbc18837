"""What is written takes its name whole, replaces nothing else, and has one writer."""

import contextlib
import errno
import functools
import os
import stat
import subprocess
import sys
from typing import Any

import pytest

from byol.bundle.folder import require_place
from byol.files.atomic import atomic_file
from byol.files.atomic import atomic_folder as atomic_folder_by
from byol.files.locks import only_writer_in
from byol.files.places import require_folder_place
from tests.support.small import REPOSITORY
from tests.support.tiny import write_tiny_bundle

atomic_folder = functools.partial(atomic_folder_by, last="a")
WRITERS: dict[str, Any] = {"atomic_file": atomic_file, "atomic_folder": atomic_folder}

HOLD = """
import sys
from tests.files.test_atomic import WRITERS
with WRITERS["{kind}"](sys.argv[1]) as place:
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
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
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


@pytest.mark.parametrize("write", WRITERS.values())
def test_an_error_of_a_full_disk_names_what_was_written(tmp_path, write):
    with pytest.raises(OSError, match=r"No space left on device: .*out"), write(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


def write_while(path, come):
    """Write a folder while something comes to its place."""
    with atomic_folder(path) as place:
        (place / "a").write_text("new")
        come()


@pytest.mark.parametrize("place", ["nothing", "a bundle", "the current folder"])
def test_what_comes_to_the_place_of_a_folder_during_the_work_stays(tmp_path, monkeypatch, place):
    out = tmp_path / "out"
    if place != "nothing":
        out.mkdir()
        (out / "a").write_text("old")
    if place == "the current folder":
        monkeypatch.chdir(out)

    def come():
        out.mkdir(exist_ok=True)
        (out / "notes.txt").write_text("mine")

    with pytest.raises(FileExistsError, match=r"out was about to be replaced, but notes\.txt came"):
        write_while(out, come)
    kept = {path.name: path.read_text() for path in out.iterdir()}
    assert kept == {"notes.txt": "mine"} | ({} if place == "nothing" else {"a": "old"})
    assert os.listdir(tmp_path) == ["out"]
    (out / "notes.txt").unlink()
    write_while(out, lambda: None)
    assert os.listdir(out) == ["a"]


def test_what_a_file_browser_leaves_in_a_folder_during_the_work_ends_none(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")

    def look():
        for name in (".DS_Store", "Thumbs.db", "._a", ".nfs0001"):
            (out / name).touch()

    write_while(out, look)
    assert (out / "a").read_text() == "new"


def test_a_file_or_a_writer_that_comes_to_the_place_of_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(FileExistsError, match="was about to be replaced, but file came"):
        write_while(tmp_path / "file", lambda: (tmp_path / "file").write_text("mine"))
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write_while(tmp_path / "made", lambda: (tmp_path / "empty").rename(tmp_path / "made"))
    with contextlib.ExitStack() as training:

        def come():
            (tmp_path / "run").mkdir()
            training.enter_context(only_writer_in(tmp_path / "run"))

        with pytest.raises(BlockingIOError, match=r"another process is writing .*run"):
            write_while(tmp_path / "run", come)
        assert os.listdir(tmp_path / "run") == [".lock"]
    assert sorted(os.listdir(tmp_path)) == ["file", "made", "run"]


def test_behind_a_link_the_folder_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "current").symlink_to("v1")
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "current") as place:
            (place / name).touch()
        assert (tmp_path / "current").is_symlink()
        assert os.listdir(tmp_path / "v1") == [name]
    assert sorted(os.listdir(tmp_path)) == ["current", "v1"]


def test_places_where_no_folder_can_be_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for path, message in {
        tmp_path / "file": "is a file",
        tmp_path / "file" / "x": "file is not a writable folder",
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
        with pytest.raises(ValueError, match="exists and is not a bundle"):
            require_place(tmp_path / "webapp")


# ------------------------------------------------------------------------------------ planted files and links


@pytest.fixture
def victim(tmp_path):
    """Somebody's private file that links are planted to."""
    path = tmp_path / "elsewhere" / "victim"
    path.parent.mkdir()
    path.write_text("mine")
    path.chmod(0o600)
    yield path
    assert path.read_text() == "mine"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("kind", "write"), [("atomic_file", atomic_file), ("atomic_folder", atomic_folder)])
def test_names_that_can_be_foreseen_are_never_written_through(tmp_path, victim, kind, write):
    for name in (".out.tmp", ".out.old"):
        (tmp_path / name).symlink_to(victim)
    with write(tmp_path / "out") as place:
        assert place.name not in (".out.tmp", ".out.old")
        (place / "a" if kind == "atomic_folder" else place).write_text("new")
    assert (tmp_path / ".out.tmp").is_symlink()  # not ours to remove
    assert (tmp_path / ".out.old").is_symlink()


def test_an_old_copy_that_somebody_keeps_beside_a_folder_stays(tmp_path):
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "mine").touch()
    for _ in range(2):
        with atomic_folder(tmp_path / "out"):
            pass
    assert sorted(os.listdir(tmp_path)) == [".out.old", "out"]
    assert os.listdir(tmp_path / ".out.old") == ["mine"]


def test_a_link_or_a_pipe_in_the_place_of_the_lock_is_refused(tmp_path, victim):
    (tmp_path / ".out.lock").symlink_to(victim)
    with pytest.raises(OSError, match=r"\.out\.lock is in the way"), atomic_file(tmp_path / "out"):
        pass
    assert (tmp_path / ".out.lock").is_symlink()
    os.mkfifo(tmp_path / ".other.lock")
    with pytest.raises(OSError, match=r"\.other\.lock is in the way"), atomic_file(tmp_path / "other"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".other.lock", ".out.lock", "elsewhere"]


def refusing(monkeypatch, *accesses):
    """Files that are there are another user's: they cannot be opened for these."""
    real = os.open

    def refuse(path, flags, *more, **named):
        if flags & os.O_ACCMODE in accesses and os.path.exists(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *more, **named)

    monkeypatch.setattr("byol.files.locks.os.open", refuse)


@pytest.mark.parametrize("write", WRITERS.values())
def test_a_lock_that_another_users_killed_process_left_is_no_obstacle(tmp_path, monkeypatch, write):
    (tmp_path / ".out.lock").touch(0o644)
    refusing(monkeypatch, os.O_RDWR)
    blocked = pytest.raises(BlockingIOError, match=r"another process is writing .*out")
    with write(tmp_path / "out"), blocked, write(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == ["out"]


def test_a_lock_that_cannot_even_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / ".out.lock").touch(0o600)
    with monkeypatch.context() as patch:
        refusing(patch, os.O_RDWR, os.O_RDONLY)
        with pytest.raises(PermissionError, match=r"\.out\.lock is another user's lock; remove it if no process"):
            atomic_file(tmp_path / "out").__enter__()
    refusing(monkeypatch, os.O_RDWR)

    def as_nfs(descriptor, operation):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("byol.files.locks.fcntl.flock", as_nfs)
    with pytest.raises(PermissionError, match=r"\.out\.lock is another user's lock"):
        atomic_file(tmp_path / "out").__enter__()
    assert os.listdir(tmp_path) == [".out.lock"]


def test_a_lock_with_content_is_somebodys_and_stays(tmp_path):
    (tmp_path / ".out.lock").write_text("mine")
    with atomic_file(tmp_path / "out") as place:
        place.write_text("new")
    assert (tmp_path / ".out.lock").read_text() == "mine"


def test_a_link_is_followed_and_its_target_replaced_whole(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/file")
    for text in ("first", "second"):
        with atomic_file(tmp_path / "out") as place:
            assert place.parent == tmp_path / "disk"  # one rename makes it whole
            place.write_text(text)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "file").read_text() == text
    assert os.listdir(tmp_path / "disk") == ["file"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_what_is_no_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(OSError, match="not a regular file"), atomic_file(tmp_path / "out"):
        raise AssertionError("the work began")


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_that_new_files_get(tmp_path, mask):
    def private(path):
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors makes them

    before = os.umask(mask)
    try:
        with atomic_file(tmp_path / "file") as place:
            private(place)
        with atomic_folder(tmp_path / "folder") as place:
            (place / "a").touch()
            private(place / "a")
    finally:
        os.umask(before)
    for path in (tmp_path / "file", tmp_path / "folder" / "a"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_share_that_syncs_no_folders_is_written_to(tmp_path, monkeypatch):
    real = os.fsync

    def sync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    for name, write in WRITERS.items():
        with write(tmp_path / name) as place:
            (place / "a" if place.is_dir() else place).touch()
    assert sorted(os.listdir(tmp_path)) == sorted(WRITERS)


@pytest.fixture
def usual_mask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("write", WRITERS.values())
def test_where_files_belong_to_another_user_they_are_written_all_the_same(tmp_path, monkeypatch, usual_mask, write):
    """As on a share or a stick that is mounted for somebody else: all but changing the mode is allowed."""
    asked = []

    def refuse(path, mode):
        asked.append(mode)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refuse)
    for made, expected in ((0o644, []), (0o600, [0o644])):  # it is asked for only where it differs
        with write(tmp_path / "out") as place:
            file = place / "a" if place.is_dir() else place
            file.unlink(missing_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, made))
        written = tmp_path / "out" / "a" if (tmp_path / "out").is_dir() else tmp_path / "out"
        assert (written.stat().st_mode & 0o777, asked) == (made, expected)


def test_names_of_255_bytes_are_written_and_told_apart(tmp_path):
    names = ["n" * 254 + end for end in "ab"]
    for name in names:
        with atomic_file(tmp_path / name) as place, atomic_file(tmp_path / names[name.endswith("a")]) as other:
            place.write_text(name)
            other.write_text("another")
        with atomic_folder(tmp_path / f"{name[:-1]}-"):
            pass
    assert sorted(os.listdir(tmp_path)) == ["n" * 254 + "-", *names]


def test_leftovers_are_swept_under_the_lock_and_files_that_look_alike_stay(tmp_path):
    ours = tmp_path / f".out.byol-{'0' * 16}.tmp"
    others = [".out.tmp", f".out.byol-{'0' * 15}.tmp", f".out.byol-{'0' * 16}.tmp.txt", f".out2.byol-{'0' * 16}.tmp"]
    for path in (ours, *(tmp_path / name for name in others)):
        path.write_text("x")
    with atomic_file(tmp_path / "out") as place:
        place.write_text("new")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "out"])


def test_a_run_sweeps_its_own_leftovers_only(tmp_path):
    pytest.importorskip("torch")
    from byol.training.run_folder import RunFolder

    own = [".config.json.tmp", ".last.safetensors.lock", f".metrics.jsonl.byol-{'a' * 16}.tmp", ".tmpAb12Cd"]
    others = [".tmpfile", ".my.tmp.notes", ".important.lock", ".template"]
    for name in (*own, *others):
        (tmp_path / name).touch()
    RunFolder(tmp_path).remove_leftovers()
    assert sorted(os.listdir(tmp_path)) == sorted(others)
