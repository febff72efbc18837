"""Images behind URLs: the same rows as from the disk, from a local file system and from an S3 server."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from byol.files.regular import SourceUnavailable
from byol.images.open import open_sections, open_source
from byol.images.remote.path import remote_path
from byol.images.source import Skipped
from byol.images.surroundings import UnreadableImage
from byol.images.walk import NOT_YOURS
from byol.serve.features.read import read_features
from tests.support.command_line import byol
from tests.support.inputs.shards import write_tar
from tests.support.tiny import write_images, write_tiny_bundle

BUCKET = "pictures"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/: 30 in three classes, one broken; a hidden file and folder; shards, an .npz and a list beside them."""
    root = tmp_path_factory.mktemp("remote")
    write_tiny_bundle(root / "bundle")
    images = root / "images"
    write_images(images, {"cat": 12, "cat.d": 6, "owl": 12})
    files = sorted(images.rglob("*.png"))
    files[4].write_bytes(b"broken")
    (images / "top.png").write_bytes(files[0].read_bytes())
    (images / ".hidden").mkdir()
    (images / ".hidden" / "a.png").write_bytes(files[0].read_bytes())
    (images / "cat" / ".b.png").write_bytes(files[0].read_bytes())
    (images / "notes.md").write_text("not an image")
    shards = root / "shards"
    shards.mkdir()
    for number in range(2):
        chosen = files[10 * number + 5 : 10 * number + 9]
        write_tar(shards / f"{number:03d}.tar", {f"{i}.png": file.read_bytes() for i, file in enumerate(chosen)})
        table = pa.table({"image": [file.read_bytes() for file in chosen], "label": ["a", "b", "a", "b"]})
        pq.write_table(table, shards / f"{number:03d}.parquet", row_group_size=2)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.savez(root / "some.npz", images=pixels, labels=np.arange(5))
    return root


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    """An S3 server on this machine, and the environment that leads to it."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        S3FileSystem.clear_instance_cache()  # another test may have asked for one without credentials
        yield running
    running.stop()


@pytest.fixture(scope="module")
def bucket(place: Path, server: ThreadedMotoServer) -> str:
    """Everything of `place` but the bundle as an S3 URL."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        if path.is_file() and not name.startswith("bundle"):
            client.upload_file(str(path), BUCKET, f"data/{name}")
    listed = "\n".join(f"s3://{BUCKET}/data/images/{name}" for name in ("top.png", "none.png", "owl/000.png"))
    client.put_object(Bucket=BUCKET, Key="data/list.txt", Body=listed.encode())
    return f"s3://{BUCKET}/data"


def rows(location: str | Path) -> list[tuple[str, str | None, bytes]]:
    """Name, class and pixels of every image that can be read."""
    source = open_source(location)
    read = []
    for i in range(len(source)):
        try:
            read.append((source.ids[i], source.labels[i], source.open(i).tobytes()))
        except ValueError:
            read.append((source.ids[i], source.labels[i], b"unreadable"))
    return read


def test_folders_of_systems_hold_no_images_and_no_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYOL_PROTOCOLS", "file")
    source = open_source(f"file://{write_images(tmp_path / 'images', {'cat': 2, '@eaDir': 1, '$Recycle.Bin': 1})}")
    assert list(source.ids) == ["cat/000.png", "cat/001.png"]
    assert source.skipped == [Skipped("$Recycle.Bin", f"{NOT_YOURS}, like 1 more")]
    for name in ("a", "~snapshot"):
        (tmp_path / "shards" / name).mkdir(parents=True)
        (tmp_path / "shards" / name / "0.tar").touch()
    found = remote_path(f"file://{tmp_path}/shards").files_below({".tar"})
    assert [file.url for file in found] == [f"file://{tmp_path}/shards/a/0.tar"]
    inside = remote_path(f"file://{tmp_path}/shards/~snapshot").files_below({".tar"})
    assert len(inside) == 1  # who names it, means it


LOCATIONS = ["images", "shards/*.tar", "shards/{000..001}.parquet", "shards/001.tar", "some.npz", "images/owl/003.png"]


@pytest.mark.parametrize("what", LOCATIONS)
def test_the_same_rows_from_s3_a_file_url_and_the_disk(
    place: Path, bucket: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYOL_PROTOCOLS", "file")
    local = rows(place / what)
    assert len(local) > 0
    assert rows(f"{bucket}/{what}") == local
    assert rows(f"file://{place}/{what}") == local


def test_lines_of_a_list_may_be_urls(place: Path, bucket: str) -> None:
    found = rows(f"{bucket}/list.txt")
    assert [pixels == b"unreadable" for _, _, pixels in found] == [False, True, False]
    assert found[0][2] == open_source(place / "images" / "top.png").open(0).tobytes()


def test_sections_are_the_whole_and_can_be_taken_up(bucket: str) -> None:
    url = f"{bucket}/images"
    whole = list(open_source(url).ids)
    sections = list(open_sections(url, 7))
    assert [name for section in sections for name in section.source.ids] == whole
    rest = open_sections(url, 7, sections[1].end)
    assert [name for section in rest for name in section.source.ids] == whole[14:]


def test_a_stamp_changes_with_an_image(place: Path, bucket: str) -> None:
    client = boto3.client("s3")
    content = (place / "images" / "owl" / "000.png").read_bytes()
    client.put_object(Bucket=BUCKET, Key="stamped/a.png", Body=content)

    def stamp() -> str:
        made = open_source(f"s3://{BUCKET}/stamped").stamp
        assert made is not None
        return made()

    before = stamp()
    assert stamp() == before
    client.put_object(Bucket=BUCKET, Key="stamped/a.png", Body=content + b"\0")
    assert stamp() != before


def test_extraction_from_s3_is_that_from_the_disk(place: Path, bucket: str, tmp_path: Path) -> None:
    def extract(images: object, out: Path) -> dict[str, object]:
        words = ("--out", f"{out}/", "--device", "cpu", "--part-images", 7, "--json")
        done = byol("extract", place / "bundle", images, *words)
        assert done.code == 0, done.err
        result: dict[str, object] = json.loads(done.out)
        return result

    local, remote = extract(place / "images", tmp_path / "a"), extract(f"{bucket}/images", tmp_path / "b")
    assert (remote["images"], remote["skipped"]) == (local["images"], local["skipped"]) == (30, 1)
    ours, theirs = read_features(tmp_path / "a"), read_features(tmp_path / "b")
    assert (ours.ids, ours.labels) == (theirs.ids, theirs.labels)
    np.testing.assert_array_equal(ours.x, theirs.x)
    assert json.loads((tmp_path / "b" / "_manifest.json").read_text())["source"] == f"{bucket}/images"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"s3://{BUCKET}/nothing", "does not exist"),
        ("s3://no-such-bucket-here/x", "no-such-bucket-here"),
        ("nothing://x/y", "nothing://x/y cannot be used: the protocol nothing is not allowed (s3, "),
        ("file:///etc", "BYOL_PROTOCOLS adds others"),
        ("http://127.0.0.1:9/x.png", "http://127.0.0.1:9/x.png cannot be read now"),
    ],
)
def test_a_url_that_leads_nowhere(place: Path, bucket: str, url: str, says: str) -> None:
    done = byol("extract", place / "bundle", url, "--out", place / "out.parquet", "--device", "cpu")
    assert done.code == 1
    assert done.err.startswith("Error:")
    assert says in done.err
    assert "Traceback" not in done.err


def test_features_are_not_written_to_a_url(place: Path) -> None:
    done = byol("extract", place / "bundle", place / "images", "--out", f"s3://{BUCKET}/features/")
    assert done.code == 2
    assert "local disk" in done.err


def test_without_fsspec_the_extra_is_named(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)  # importing it fails, as where it is not installed
    done = byol("extract", place / "bundle", "s3://a/b", "--out", tmp_path / "x.parquet")
    assert done.code == 1
    assert "in a checkout of byol, run: pip install '.[remote]'" in done.err


def test_a_server_that_is_gone_stops_the_work(place: Path, server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike an image that is: the rest of the images would all be listed as unreadable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    S3FileSystem.clear_instance_cache()  # it would go on asking the other server
    with subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL) as running:
        try:
            wait_for(port)
            client = boto3.client("s3")
            client.create_bucket(Bucket="passing")
            for name in ("a.png", "b.png"):
                client.upload_file(str(place / "images" / "owl" / "000.png"), "passing", name)
            source = open_source("s3://passing/")
            client.delete_object(Bucket="passing", Key="a.png")
            with pytest.raises(UnreadableImage):
                source.open(0)
            source.open(1)
        finally:
            running.kill()
    with pytest.raises(SourceUnavailable, match=r"s3://passing/b\.png cannot be read now"):
        source.open(1)


def wait_for(port: int) -> None:
    """Until something answers there."""
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError(port)
