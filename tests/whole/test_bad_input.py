"""Bad images through the commands: rows never shift, skips are listed, nothing partial is left, no traceback."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from byol.images.decode import Preprocess
from byol.images.picture.read import read_image
from byol.serve import Encoder
from byol.serve.features.read import read_features
from tests.support.command_line import byol
from tests.support.inputs.odd_images import bad_images, odd_images, write_files, write_unreadable
from tests.support.small import REPOSITORY
from tests.support.tiny import assert_same_features, tiny_reference, write_images, write_tiny_bundle

PHOTOS = REPOSITORY.parent / "shared" / "data" / "photos.tar.gz"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bad") / "bundle")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two classes of good, odd and bad images, names that sort the bad ones between the good ones."""
    root = write_images(tmp_path / "mixed", {"cat": 20, "dog": 20})
    for label in ("cat", "dog"):
        write_files(root / label, {f"007-{name}": content for name, content in bad_images().items()})
        write_files(root / label, {f"013-{name}": content for name, content in odd_images().items()})
    write_unreadable(root / "cat")
    (root / "cat" / "loop").symlink_to(root, target_is_directory=True)
    return root


def skipped_of(path: Path) -> dict[str, tuple[str, str]]:
    return {row["path"]: (row["stage"], row["reason"]) for row in pq.read_table(path).to_pylist()}


def expected_skips(mixed: Path) -> set[str]:
    bad = {f"{label}/007-{name}" for label in ("cat", "dog") for name in bad_images()}
    unreadable = {
        f"cat/{p.name}" for p in (mixed / "cat").iterdir() if p.name in ("dangling.png", "self.png", "closed.png")
    }
    return bad | unreadable | {"cat/loop"}


@pytest.mark.parametrize("out", ["f.parquet", "f.npz", "folder"])
def test_rows_stay_in_place_and_skips_are_listed(bundle: Path, mixed: Path, tmp_path: Path, out: str) -> None:
    done = byol("extract", bundle, mixed, "--out", tmp_path / out, "--device", "cpu", "--batch-size", "3", "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    read = read_features(tmp_path / out)
    skips = skipped_of(tmp_path / ("folder/_errors/errors.parquet" if out == "folder" else f"{out}.errors.parquet"))
    assert set(skips) == expected_skips(mixed)
    assert skips["cat/loop"] == ("list", "symbolic link to a folder that is already listed")
    assert skips["dog/007-empty.jpg"] == ("decode", "not an image, or a format that is not supported")
    assert (values["images"], values["skipped"]) == (len(read), len(skips)) == (60, len(skips))
    assert read.ids == sorted(read.ids)
    assert read.labels == [i.split("/")[0] for i in read.ids]
    transform = Preprocess.for_size(16)
    alone = np.stack([transform(read_image(mixed / i)) for i in read.ids])
    assert_same_features(read.x, tiny_reference(bundle, alone))
    assert f"skipped {len(skips)} (listed in " in done.err
    assert "Traceback" not in done.err


def test_long_lists_are_cut_on_stderr_only(bundle: Path, tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {f"{i:02}.jpg": b"" for i in range(25)} | {"x.png": odd_images()["one.png"]})
    done = byol("extract", bundle, root, "--out", tmp_path / "f.npz", "--device", "cpu")
    lines = done.err.splitlines()
    assert lines[0] == f"skipped 25 (listed in {tmp_path / 'f.npz.errors.parquet'}):"
    assert lines[1] == "  00.jpg: not an image, or a format that is not supported"
    assert lines[-1] == "  and 5 more"
    assert len(lines) == 22
    assert len(skipped_of(tmp_path / "f.npz.errors.parquet")) == 25


def test_stale_error_list_is_removed(bundle: Path, tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.jpg": b"", "b.png": odd_images()["one.png"]})
    command = ("extract", bundle, root, "--out", tmp_path / "f.parquet", "--device", "cpu")
    assert byol(*command).code == 0
    assert (tmp_path / "f.parquet.errors.parquet").exists()
    (root / "a.jpg").write_bytes(odd_images()["grey.jpg"])
    assert byol(*command).code == 0
    assert not (tmp_path / "f.parquet.errors.parquet").exists()


@pytest.mark.parametrize("out", ["f.parquet", "f.npz", "new/folder", "deep/er/f.npz"])
@pytest.mark.parametrize("on_error", ["skip", "fail"])
def test_nothing_readable_leaves_nothing(bundle: Path, tmp_path: Path, out: str, on_error: str) -> None:
    root = write_files(tmp_path / "in", bad_images())
    target = tmp_path / "out"
    target.mkdir()
    done = byol("extract", bundle, root, "--out", target / out, "--device", "cpu", "--on-error", on_error, "--json")
    assert (done.code, done.out) == (1, "")
    assert "bomb.png: " in done.err
    assert done.err.count("\n") == 1
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("out", ["f.parquet", "f.npz"])
def test_on_error_fail_names_the_first_and_keeps_the_old_output(
    bundle: Path, mixed: Path, tmp_path: Path, out: str
) -> None:
    (mixed / "cat" / "loop").unlink()
    good = write_images(tmp_path / "good", {"cat": 3})
    target = tmp_path / "out"
    target.mkdir()
    assert byol("extract", bundle, good, "--out", target / out, "--device", "cpu").code == 0
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    done = byol("extract", bundle, mixed, "--out", target / out, "--device", "cpu", "--on-error", "fail", "--json")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: cat/007-bomb.png: ")
    assert done.err.count("\n") == 1
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_evaluation_skips_and_says_so(bundle: Path, mixed: Path, tmp_path: Path) -> None:
    test = write_images(tmp_path / "test", {"cat": 5, "dog": 5}, seed=1)
    (test / "dog" / "bad.jpg").write_bytes(b"")
    for command in ("knn", "linear"):
        done = byol(command, bundle, "--train", mixed, "--test", test, "--device", "cpu", "--json")
        assert done.code == 0, done.err
        values = json.loads(done.out)
        assert (values["n_train"], values["n_test"]) == (60, 10)
        assert f"skipped {len(expected_skips(mixed))} of --train:" in done.err
        assert "skipped 1 of --test:" in done.err


def test_evaluation_with_no_readable_image_fails(bundle: Path, tmp_path: Path) -> None:
    train = write_images(tmp_path / "train", {"cat": 3, "dog": 3})
    test = write_files(tmp_path / "test" / "cat", {"a.png": b"", "b.png": b""}).parent
    done = byol("knn", bundle, "--train", train, "--test", test, "--device", "cpu")
    assert (done.code, done.out) == (1, "")
    assert "none of the 2 images" in done.err


def test_names_that_are_not_utf8_go_through(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "caf\udce9"
    try:
        folder.mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write_files(folder, {"a.png": odd_images()["one.png"], "bad\udcff.png": b""})
    out = tmp_path / "f\udce9.parquet"
    done = byol("extract", bundle, tmp_path / "in", "--out", out, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["out"].endswith("f\\xe9.parquet")
    assert "caf\\xe9/bad\\xff.png: not an image" in done.err
    read = read_features(out)
    assert (read.ids, read.labels) == (["caf\\xe9/a.png"], ["caf\\xe9"])
    assert byol("info", os.fsencode(tmp_path / "no\udce9").decode("utf-8", "surrogateescape")).code == 2


@pytest.mark.skipif(os.name == "nt", reason="no such names on Windows")
def test_names_with_line_ends_and_terminal_codes_stay_on_their_line(bundle: Path, tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", {"a.png": odd_images()["one.png"], "b\n\x1b[2J.png": b""})
    done = byol("extract", bundle, root, "--out", tmp_path / "f.npz", "--device", "cpu")
    assert done.err.splitlines()[1:] == ["  b\\n\\x1b[2J.png: not an image, or a format that is not supported"]
    assert list(skipped_of(tmp_path / "f.npz.errors.parquet")) == ["b\n\x1b[2J.png"]


@pytest.mark.skipif(not PHOTOS.is_file(), reason="the shared photographs are not beside this checkout")
def test_real_photographs(tmp_path: Path) -> None:
    """Extract, then kNN from the features and from the images agree; colour alone is above chance on ten classes."""
    with tarfile.open(PHOTOS) as archive:
        archive.extractall(tmp_path, [m for m in archive if m.isfile()][::4], filter="data")
    bundle = write_tiny_bundle(tmp_path / "bundle", size=32, dim=24)
    cpu = ("--device", "cpu", "--json")
    features, train, test = tmp_path / "train.parquet", tmp_path / "train", tmp_path / "test"
    values = json.loads(byol("extract", bundle, train, "--out", features, *cpu).out)
    assert (values["images"], values["skipped"]) == (len(read_features(features)), 0)
    assert values["images"] > 100
    paths = [train / i for i in read_features(features).ids[:3]]
    assert_same_features(Encoder(bundle, "cpu")(paths), read_features(features).x[:3])
    images = json.loads(byol("knn", bundle, "--train", train, "--test", test, *cpu).out)
    files = json.loads(byol("knn", bundle, "--train", features, "--test", test, *cpu).out)
    assert images | {"seconds": 0} == files | {"seconds": 0}
    assert images["top1"] > 0.1
