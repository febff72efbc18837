"""Extraction on a Ray cluster of this machine: the rows of the local engine, also when workers are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from byol.files.regular import SourceUnavailable
from byol.images.decode import Preprocess
from byol.images.open import open_place, open_sections, rows_digest
from byol.serve.extract.ray_engine import _batch, _decode, _for_workers, _readable, _take_back
from byol.serve.features.read import read_features
from tests.support.command_line import byol
from tests.support.folders import contents
from tests.support.inputs.odd_images import stacks
from tests.support.small import REPOSITORY, traps
from tests.support.tiny import write_images, write_tiny_bundle
from tests.support.web.file_server import Web, always

WORDS = ("--device", "cpu", "--part-images", 150)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, images/ (400, some broken), pixels.npz, and local/: what the local engine makes of the images."""
    root = tmp_path_factory.mktemp("ray")
    write_tiny_bundle(root / "bundle")
    write_images(root / "images", {"cat": 200, "dog": 200})
    for path in sorted((root / "images").rglob("*.png"))[3::50]:
        path.write_bytes(b"broken")
    pixels = np.random.default_rng(0).integers(0, 256, (170, 8, 8, 3), np.uint8)
    np.savez(root / "pixels.npz", images=pixels, labels=np.arange(170) % 3)
    done = byol("extract", root / "bundle", root / "images", "--out", f"{root}/local/", *WORDS)
    assert done.code == 0, done.err
    return root


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files whose name has room for those of Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def command(place: Path, images: str, out: Path) -> list[str]:
    words = ("extract", place / "bundle", place / images, "--out", f"{out}/", *WORDS, "--engine", "ray")
    return [sys.executable, "-P", "-m", "byol", *map(str, words)]


def require_same(place: Path, out: Path) -> None:
    ours, theirs = read_features(place / "local"), read_features(out)
    assert (theirs.ids, theirs.labels, theirs.bundle) == (ours.ids, ours.labels, ours.bundle)
    np.testing.assert_allclose(theirs.x, ours.x, rtol=1e-5, atol=1e-6)
    assert list(contents(out)) == list(contents(place / "local"))
    assert pq.read_table(out / "_errors" / "errors.parquet").equals(
        pq.read_table(place / "local" / "_errors" / "errors.parquet")
    )


def test_the_rows_are_those_of_the_local_engine(place: Path, tmp_path: Path) -> None:
    """Also from a folder in which Ray's workers would find other modules than ours."""
    here, environment = traps(tmp_path / "here"), {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = command(place, "images", tmp_path / "out")
    done = subprocess.run(run, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    require_same(place, tmp_path / "out")


def test_workers_find_what_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    assert _for_workers(Path("images")) == tmp_path.resolve() / "images"
    assert _for_workers(Path("shards/*.tar")) == tmp_path / "shards" / "*.tar"
    for location in ("s3://bucket/images", Path("cifar10:test")):
        assert _for_workers(location) == location


@pytest.mark.parametrize("name", ["images.txt", "images.npz"])
def test_a_worker_reads_no_rows_of_another_listing(place: Path, tmp_path: Path, name: str) -> None:
    def write(first: int) -> Path:
        rows = np.roll(np.arange(4), -first)
        if name == "images.txt":
            files = sorted((place / "images" / "dog").rglob("*.png"))[10:]  # none of them broken
            (tmp_path / name).write_text("".join(f"{files[row]}\n" for row in rows))
        else:
            np.savez(
                tmp_path / name, images=np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (4, 16, 16, 3))
            )
        return tmp_path / name

    def decoded(location: Path) -> dict[str, np.ndarray]:  # as by a worker that has not met the location yet
        opener = partial(open_place, location, here=os.getcwdb(), rows=listed)
        chunk = {"section": np.zeros(1, int), "first": np.zeros(1, int), "places": np.arange(4)[None]}
        return {**_decode(opener, Preprocess.for_size(16), chunk), "features": np.zeros((4, 2))}

    [section] = open_sections(write(0), 100)
    listed = rows_digest(section.source)
    (tmp_path / "copy").mkdir()
    shutil.copyfile(tmp_path / name, tmp_path / "copy" / name)  # with another time
    assert len(_batch(section.source, decoded(tmp_path / "copy" / name)).indices) == 4
    with pytest.raises(SourceUnavailable, match="has changed since it was listed"):
        _batch(section.source, decoded(write(1)))


def test_workers_tell_stacks(tmp_path: Path) -> None:
    images = stacks(write_images(tmp_path / "images", {"cat": 2, "dog": 2}))
    section = next(open_sections(images, 7))
    chunk = {
        "places": np.array([list(section.source.places or ())], object),
        "section": np.zeros(1),
        "first": np.zeros(1),
    }
    rows = _decode(partial(open_place, images), Preprocess.for_size(16), chunk)
    batch = _batch(section.source, {**rows, "row": rows["row"].astype(int), "features": np.zeros((7, 2))})
    assert [section.source.ids[row] for row in batch.several] == ["cat/a.gif", "cat/b.tif", "dog/c.png"]


def test_workers_killed_in_the_middle_lose_nothing(place: Path, tmp_path: Path) -> None:
    killed: list[str] = []
    with subprocess.Popen(command(place, "images", tmp_path / "out"), stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and len(killed) < 2:
            for kind in {"_decode", "_EncodeActor"} - set(killed):
                for worker in ray_workers(kind):
                    os.kill(worker, signal.SIGKILL)
                    killed.append(kind)
                    break
        _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert "_EncodeActor" in killed  # a decoding task may be too short to be met
    require_same(place, tmp_path / "out")


def ray_workers(kind: str) -> list[int]:
    """The processes that decode or encode right now: Ray writes the name of what they do into their title."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (entry / "cmdline").read_bytes()
            if title.startswith(b"ray::") and kind.encode() in title:
                found.append(int(entry.name))
    return found


LISTENERS = """
import json, os, re
from pathlib import Path
from byol.serve.extract.ray_engine import cluster

def parent(process):
    return int(re.search(r"PPid:\\s*(\\d+)", (process / "status").read_text())[1])

def mine(process):
    while process.exists() and int(process.name) not in (1, os.getpid()):
        process = Path("/proc", str(parent(process)))
    return process.name == str(os.getpid())

if __name__ == "__main__":
    with cluster(None):
        import ray
        ray.get(ray.remote(lambda: 1).remote())
        family = [process for process in Path("/proc").glob("[0-9]*") if mine(process)]
        sockets = {os.readlink(file) for process in family for file in (process / "fd").iterdir() if file.is_symlink()}
        rows = [line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()]
        print(json.dumps([row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]))
"""
LOOPBACK = re.compile("(?:0000000000000000FFFF0000|)[0-9A-F]{6}7F:|0{24}01000000:")  # 127.x, also as IPv6, and ::1


def test_what_becomes_of_a_cluster_is_said_in_one_line() -> None:
    from ray import exceptions

    low = exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node ...")
    text = "Ray: Task was killed due to the node running low on memory.; finished parts are kept, run the same command"
    wrapped = RuntimeError("of Ray Data's")
    wrapped.__cause__ = low
    for error in (low, wrapped):
        found = _readable(error)
        assert type(found) is ValueError
        assert str(found).startswith(text)
    for lost in (exceptions.WorkerCrashedError(), exceptions.ActorDiedError(), exceptions.LocalRayletDiedError()):
        assert "died" in str(_readable(lost))
    for inner, kind in ((SourceUnavailable("gone"), SourceUnavailable), (MemoryError("little"), MemoryError)):
        task = exceptions.RayTaskError("f", "Traceback ...", inner).as_instanceof_cause()
        assert (type(_readable(task)), str(_readable(task))) == (kind, str(inner))
    defect = exceptions.RayTaskError("f", "Traceback ...", TypeError("ours")).as_instanceof_cause()
    assert _readable(defect) is defect


def test_a_handler_in_c_that_ray_left_alone_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[int, object] = {signal.SIGTERM: max, signal.SIGINT: None}
    monkeypatch.setattr(signal, "getsignal", now.get)
    monkeypatch.setattr(signal, "signal", now.__setitem__)
    _take_back({signal.SIGTERM: min, signal.SIGINT: None})
    assert now == {signal.SIGTERM: min, signal.SIGINT: None}


def test_a_signal_ends_the_work_and_leaves_nothing_behind(place: Path, tmp_path: Path, short: Path) -> None:
    words, workers = command(place, "images", tmp_path / "out"), list[int]()
    environment = {**os.environ, "TMPDIR": str(short)}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as run:
        while run.poll() is None and not workers:
            workers = [worker for worker in ray_workers("MapBatches") if run.pid in ancestors(worker)]
        run.terminate()
        _, said = run.communicate(timeout=60)
    assert run.returncode == 1, said
    assert said.splitlines()[-1].startswith("Error: stopped by SIGTERM; finished parts are kept")
    assert "*** SIG" not in said
    assert not list(short.glob("byol-*"))
    for _ in range(500):
        if not any(Path("/proc", str(worker)).exists() for worker in workers):
            return
        time.sleep(0.02)
    pytest.fail("workers are left")


def ancestors(process: int) -> list[int]:
    """The processes above one, the nearest first."""
    found = []
    with contextlib.suppress(OSError):
        while process > 1:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(process)
    return found


def test_a_cluster_of_this_machine_listens_on_loopback_only(tmp_path: Path) -> None:
    (tmp_path / "listeners.py").write_text(LISTENERS)
    done = subprocess.run([sys.executable, tmp_path / "listeners.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    addresses = json.loads(done.stdout)
    assert len(addresses) > 4  # the head, the node, its agents, the workers
    assert [address for address in addresses if not LOOPBACK.match(address)] == []


def test_a_server_that_goes_stops_the_work_and_the_same_command_goes_on(place: Path, tmp_path: Path) -> None:
    images = sorted((place / "images").rglob("*.png"))
    with Web({f"/{image.relative_to(place).as_posix()}": image.read_bytes() for image in images}) as web:
        words = command(place, "images", tmp_path / "out")
        words[words.index(f"{place}/images")] = f"{web.url}/images"
        web.odd["/images/dog/150.png"] = always(401)
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        said = f"Error: {web.url}/images/dog/150.png cannot be read now: HTTP 401 (Unauthorized); run the same command"
        assert said in done.stderr
        web.odd.clear()
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    require_same(place, tmp_path / "out")


def test_rows_of_an_npz(place: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(place, "pixels.npz", tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    local = byol("extract", place / "bundle", place / "pixels.npz", "--out", tmp_path / "local.parquet", *WORDS[:2])
    assert local.code == 0, local.err
    ours, theirs = read_features(tmp_path / "local.parquet"), read_features(tmp_path / "out")
    assert (theirs.ids, theirs.labels) == (ours.ids, ours.labels)
    np.testing.assert_allclose(theirs.x, ours.x, rtol=1e-5, atol=1e-6)


def test_an_address_that_does_not_answer(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **_: object) -> None:  # Ray's own takes a minute
        raise ConnectionError(f"ray client connection timeout at {address}")

    monkeypatch.setattr("ray.init", init)
    words = ("extract", place / "bundle", place / "images", "--out", f"{tmp_path}/out/", "--ray-address", "ray://a:1")
    done = byol(*words, "--engine", "ray")
    assert done.code == 1
    assert done.err.splitlines()[-1] == (
        "Error: no Ray cluster answers at ray://a:1: ray client connection timeout at ray://a:1"
    )
    done = byol(*words)
    assert (done.code, "--ray-address needs --engine ray" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--variant", "auto"], 1, "name one"),
        (["--processes", "2"], 2, "are for --engine local"),
        (["--decode-threads", "2"], 2, "are for --engine local"),
    ],
)
def test_what_a_cluster_cannot_do(place: Path, tmp_path: Path, more: list[str], code: int, says: str) -> None:
    words = ("extract", place / "bundle", place / "images", "--out", f"{tmp_path}/out/", "--engine", "ray", *more)
    done = byol(*words)
    assert (done.code, says in done.err) == (code, True), done.err
