"""`byol duplicates`, what it writes, and what takes it; and the warning of the evaluating commands."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byol import outputs
from byol.images.lists import line_of, list_source
from byol.images.open import open_source
from byol.serve.duplicates import write as duplicates_write
from byol.serve.duplicates.search import Found
from byol.serve.duplicates.twins import Twins, twins_in_training
from byol.serve.duplicates.unfinished import Unfinished
from byol.serve.features.read import read_features
from byol.signals import Stopped
from tests.support.command_line import byol
from tests.support.tiny import write_images, write_tiny_bundle

NEAR = 0.9999  # the tiny encoder sees little more than colours
CPU = ("--device", "cpu", "--json")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """bundle/, photos/ with copies under odd names and one unreadable image, more/ with a copy of one of them."""
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "bundle")
    colours = np.random.default_rng(4).integers(0, 256, (8, 3))
    for number, colour in enumerate(colours):
        folder = tmp_path / ("more" if number > 5 else "photos") / f"c{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), colour, np.uint8)).save(folder / f"{number}.png")
    photos = tmp_path / "photos"
    shutil.copy(photos / "c0" / "0.png", photos / "c0" / " blank 'quoted\u2028\u00e9.png")
    shutil.copy(photos / "c1" / "1.png", photos / "c1" / 'z=1,".png')
    (photos / "c1" / "bad.png").write_bytes(b"no picture")
    shutil.copy(photos / "c1" / "3.png", tmp_path / "more" / "c1" / "3-again.png")
    return tmp_path


def run(*words: object) -> dict[str, Any]:
    done = byol("duplicates", *words, "--threshold", NEAR, *CPU)
    assert done.code == 0, done.err
    values: dict[str, Any] = json.loads(done.out)
    return values


def pairs(path: Path) -> list[tuple[str, str]]:
    table = pq.read_table(path).to_pydict()
    assert list(table) == ["id_a", "id_b", "cosine", "against"]
    assert min(table["cosine"], default=1) >= NEAR
    return sorted(zip(table["id_a"], table["id_b"], strict=True))


def test_pairs_keep_list_and_picture_of_a_folder(work: Path) -> None:
    words = ("bundle", "photos", "--out", "pairs.parquet", "--keep", "keep.txt", "--grid", "grid.png")
    values = run(*words)
    odd = open_source(Path("photos")).ids[0]
    assert "quoted" in odd
    assert pairs(work / "pairs.parquet") == sorted([(odd, "c0/0.png"), ("c1/1.png", 'c1/z=1,".png')])
    assert {k: values[k] for k in ("images", "pairs", "listed", "duplicates", "kept")} == {
        **{"images": 8, "pairs": 2, "listed": 2, "duplicates": 2, "kept": 6}
    }
    assert Image.open("grid.png").info["Software"] == "byol"
    assert not list(work.glob("*unfinished*"))
    extracted = byol("extract", "bundle", "keep.txt", "--out", "kept.npz", *CPU)  # the list is taken as it stands
    assert json.loads(extracted.out)["images"] == 6, extracted.err
    kept = [Path(name).relative_to("photos").as_posix() for name in read_features(work / "kept.npz").ids]
    assert kept == [odd, "c0/2.png", "c0/4.png", "c1/1.png", "c1/3.png", "c1/5.png"]
    assert run("bundle", "keep.txt", "--out", "again.parquet")["pairs"] == 0
    assert run(*words)["pairs"] == 2  # its own files are written over


def test_new_images_against_known_ones(work: Path) -> None:
    values = run("bundle", "more", "--against", "photos", "--out", "p.parquet", "--keep", "new.txt", "--grid", "g.png")
    assert pairs(work / "p.parquet") == [("c1/3.png", "c1/3-again.png")]
    assert pq.read_table("p.parquet")["against"].to_pylist() == [True]
    assert (values["images"], values["against"], values["duplicates_of_against"], values["kept"]) == (3, 8, 1, 2)
    assert (work / "new.txt").read_text().split() == ["more/c0/6.png", "more/c1/7.png"]


def test_features_need_no_bundle_and_find_the_same(work: Path) -> None:
    assert byol("extract", "bundle", "photos", "--out", "f.parquet", *CPU).code == 0
    run("bundle", "photos", "--out", "a.parquet", "--keep", "a.txt")
    run("f.parquet", "--out", "b.parquet", "--keep", "b.txt", "--images", "photos", "--grid", "b.png")
    assert pairs(work / "a.parquet") == pairs(work / "b.parquet")
    assert (work / "a.txt").read_bytes() == (work / "b.txt").read_bytes()
    run("f.parquet", "--out", "c.parquet", "--keep", "c.txt")  # in the folder that was extracted
    source = open_source(work / "c.txt", here=bytes(work / "photos"))
    assert len(source) == 6
    assert all(source.open(i).size == (24, 20) for i in range(6))


def test_a_run_without_duplicates_writes_an_empty_table(work: Path) -> None:
    values = run("bundle", "more", "--out", "p.parquet", "--grid", "g.png")
    assert (values["pairs"], "grid" in values, (work / "g.png").exists()) == (0, False, False)
    assert outputs.PAIRS.holds(work / "p.parquet")


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("photos", "--out", "p.parquet"), 2, "name the bundle that encodes its images"),
        (("nowhere", "--out", "p.parquet"), 1, "does not exist"),
        (("bundle", "photos", "more", "--out", "p.parquet"), 2, r"expected \[BUNDLE\] SRC, but got 3"),
        (("bundle", "photos", "--against", "./photos", "--out", "p.parquet"), 2, "are the same"),
        (("bundle", "photos", "--out", "p.csv"), 2, "does not end in .parquet"),
        (("bundle", "photos", "--out", "p.parquet", "--keep", "note.txt"), 2, "is not a list of images to keep"),
        (("bundle", "photos", "--out", "f.parquet"), 2, "exists and is not a table of duplicates"),
        (("bundle", "photos", "--out", "p.parquet", "--grid", "photos/g.png"), 2, "would become an image"),
        (("bundle", "photos", "--out", "p.parquet", "--images", "photos"), 2, "holds images itself"),
        (("f.npz", "--out", "p.parquet", "--grid", "g.png"), 2, "name its images by --images"),
        (("f.npz", "--out", "p.parquet", "--keep", "k.txt", "--images", "more"), 1, "are not in more"),
        (("bundle", "i.npz", "--out", "p.parquet", "--keep", "k.txt"), 2, "lists files"),
        (("f.npz", "--out", "p.parquet", "--threshold", "1"), 2, "0<x<=0.9999"),
    ],
)
def test_refused(work: Path, words: tuple[str, ...], code: int, reason: str) -> None:
    for name in ("note.txt", "f.parquet"):
        (work / name).write_text("of mine\n")
    np.savez(work / "f.npz", ids=np.array(["c0/0.png", "x"]), features=np.eye(2, dtype=np.float32))
    np.savez(work / "i.npz", images=np.zeros((2, 16, 16, 3), np.uint8))
    done = byol("duplicates", *words, "--device", "cpu")
    assert done.code == code, done.err
    assert re.search(reason, done.err), done.err
    assert not (work / "p.parquet").exists()
    assert {(work / name).read_text() for name in ("note.txt", "f.parquet")} == {"of mine\n"}


def test_a_lost_disk_is_no_bad_image(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from byol.images.folder import LocalTree

    def gone(self: LocalTree, path: bytes, least_side: int = 0) -> Image.Image:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalTree, "open", gone)
    done = byol("duplicates", "bundle", "photos", "--out", "p.parquet", "--device", "cpu")
    assert (done.code, (work / "p.parquet").exists()) == (1, False)
    assert "Input/output error" in done.err


def test_the_same_command_goes_on_after_a_signal(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    x[30:] = x[:10]
    np.savez(work / "f.npz", features=x)
    run("f.npz", "--out", "whole.parquet")
    monkeypatch.setattr("byol.serve.duplicates.search.STRIP", 8)
    monkeypatch.setattr("byol.serve.duplicates.unfinished.SECONDS", 0)
    save = Unfinished.save

    def stopped(self: Unfinished, found: Found) -> None:
        save(self, found)
        raise Stopped("stopped by SIGTERM")

    words = ("duplicates", "f.npz", "--out", "pairs.parquet", "--threshold", NEAR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unfinished, "save", stopped)
        done = byol(*words)
    assert (done.code, done.out) == (1, "")
    assert "stopped by SIGTERM; run the same command again to resume" in done.err
    assert (work / "pairs.parquet.unfinished.npz").exists()
    assert not (work / "pairs.parquet").exists()
    done = byol(*words)
    assert (done.code, "resuming the interrupted comparison" in done.err) == (0, True)
    assert (
        pairs(work / "pairs.parquet")
        == pairs(work / "whole.parquet")
        == sorted((str(i), str(i + 30)) for i in range(10))
    )
    assert not list(work.glob("*unfinished*"))


@pytest.mark.parametrize("again", [False, True])  # over the files of an earlier, other search, or none
def test_a_search_survives_a_failure_to_write_its_results(
    work: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    words = ("bundle", "photos", "--out", "p.parquet", "--keep", "keep.txt")
    expected = run(*words[:2], "--out", "whole.parquet", "--keep", "whole.txt")
    if again:
        done = byol("duplicates", *words, "--threshold", 0.5, *CPU)
        assert done.code == 0, done.err

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write = duplicates_write.write_pairs

    def full_behind_the_pairs(*words: Any) -> None:
        write(*words)
        full()

    for place in ("pyarrow.parquet.ParquetWriter.write_table", "byol.serve.duplicates.write.write_pairs"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full_behind_the_pairs if "byol" in place else full)
            assert byol("duplicates", *words, "--threshold", NEAR, *CPU).code == 1
        assert (work / "p.parquet.unfinished.npz").exists()
    done = byol("duplicates", *words, "--threshold", NEAR, *CPU)
    assert (done.code, "resuming" in done.err) == (0, True), done.err
    assert json.loads(done.out)["pairs"] == expected["pairs"]
    assert (work / "keep.txt").read_bytes() == (work / "whole.txt").read_bytes()
    assert pairs(work / "p.parquet") == pairs(work / "whole.parquet")


def test_a_search_survives_a_picture_that_fails(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("bundle", "photos", "--out", "p.parquet", "--grid", "grid.png")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("byol.serve.duplicates.write.draw_groups", full)
        assert byol("duplicates", *words, "--threshold", NEAR, *CPU).code == 1
    assert (work / "p.parquet.unfinished.npz").exists()
    assert "resuming" in byol("duplicates", *words, "--threshold", NEAR, *CPU).err
    assert not list(work.glob("*unfinished*"))


def test_a_search_that_cannot_be_kept_still_gives_its_results(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    words = ("bundle", "photos", "--threshold", NEAR, *CPU)
    assert byol("duplicates", *words, "--out", "whole.parquet").code == 0
    monkeypatch.setattr(Unfinished, "save", full)
    done = byol("duplicates", *words, "--out", "p.parquet")
    assert (done.code, "cannot be kept" in done.err) == (0, True), done.err
    assert pairs(work / "p.parquet") == pairs(work / "whole.parquet")


def test_images_that_are_not_those_of_the_features_are_named_before_the_search(work: Path) -> None:
    assert byol("extract", "bundle", "photos", "--out", "f.parquet", "--device", "cpu").code == 0
    (work / "photos" / "c0" / "0.png").unlink()
    done = byol("duplicates", "f.parquet", "--images", "photos", "--out", "p.parquet", "--grid", "g.png")
    assert done.code == 1
    assert "c0/0.png" in done.err
    assert "name the images that were extracted" in done.err
    assert not (work / "p.parquet").exists()


def test_features_that_are_all_alike_are_said_to_be(work: Path) -> None:
    x = 1 + 1e-3 * np.random.default_rng(0).random((100, 8), np.float32)
    np.savez(work / "f.npz", features=x)
    done = byol("duplicates", "f.npz", "--out", "p.parquet")
    assert done.code == 0
    assert "of an image's pairs the first 20 are listed" in done.err
    assert "warning: 100.00% of all pairs reach the threshold" in done.err


# ------------------------------------------------------------------------------------------------ lists of images


@pytest.mark.parametrize(
    "name", [b"a.png", b" a.png ", b'"a.png"', b"'a' b.png", b"\xef\xbb\xbfa.png", b"\xff\xfe.png"]
)
def test_a_line_names_the_file_that_it_was_made_of(tmp_path: Path, name: bytes) -> None:
    path = bytes(tmp_path) + b"/" + name
    Image.new("RGB", (3, 2), "red").save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(os.fsdecode(path))
    for written, here in ((path, None), (name, bytes(tmp_path))):
        line = line_of(written)
        assert line is not None
        assert list_source("list", line + b"\n", here).open(0).size == (3, 2)


def test_what_no_line_can_name() -> None:
    assert line_of(b"a\nb.png") is None
    assert line_of(b"https://host/a.png?signature=secret") is None
    assert line_of(b"https://user:word@host/a.png") is None
    assert line_of(b"https://host/a.png") == b"https://host/a.png"


# ------------------------------------------------------------------------------------- twins of test images


def leaky(work: Path, shared: int, count: int = 300) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    train, test = random.normal(size=(2, count, 64)).astype(np.float32)
    test[:shared] = train[:shared] * 1.5
    labels = np.array([f"c{i % 2}" for i in range(count)])
    for name, x in (("train.npz", train), ("test.npz", test)):
        np.savez(work / name, features=x, labels=labels)
    return work / "train.npz", work / "test.npz"


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_twins_of_test_images_in_training_are_said(tmp_path: Path, command: str) -> None:
    said = "test images have a near-duplicate in training"
    for shared, warned in ((6, True), (1, False)):  # of 300: 2 % and 0.3 %
        train, test = leaky(tmp_path, shared)
        done = byol(command, "--train", train, "--test", test, *CPU)
        assert (said in done.err) == warned, done.err
        assert f"{shared} of 300 " in done.err or not warned
        assert "twin" not in done.out + "".join(json.loads(done.out))
    alone = byol("knn", "--train", train, *CPU)
    assert said not in alone.err


def test_transfer_says_of_which_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    write_images(tmp_path / "own", {"a": 8, "b": 8})
    shutil.copytree(tmp_path / "own", tmp_path / "copy")
    words = ("transfer", bundle, f"mine={tmp_path / 'own'},{tmp_path / 'copy'}", *CPU)
    assert "near-duplicate" not in byol(*words).err  # the tiny encoder finds twins of everything, which says nothing
    monkeypatch.setattr("byol.serve.duplicates.twins.COMMON", 1)
    assert "warning: mine: 16 of 16 test images have a near-duplicate in training" in byol(*words).err


def test_features_that_are_all_alike_have_no_twins() -> None:
    x = 1 + 1e-3 * np.random.default_rng(0).random((400, 8), np.float32)
    assert twins_in_training(x[:300], x[300:]).having == 0


def test_twins_are_found_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol.serve.duplicates.twins.PIECE", 7)
    train, test = np.random.default_rng(0).normal(size=(2, 40, 16)).astype(np.float32)
    test[[0, 6, 7, 39]] = 2 * train[[39, 7, 6, 0]]
    assert twins_in_training(train, test) == Twins(40, 4)


def test_of_many_test_images_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol.serve.duplicates.twins.PRODUCTS", 0)
    x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    twins = twins_in_training(x, x)
    assert (twins.looked, twins.having, twins.many) == (200, 200, True)
