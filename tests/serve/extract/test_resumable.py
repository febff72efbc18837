"""Folders of parts: bounded, aligned, and resumed wherever a run ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from byol.bundle.folder import Bundle
from byol.images.open import open_sections, open_source
from byol.images.shards.schema import DIGEST_KEY
from byol.serve.encoder import Encoder
from byol.serve.extract import resumable as parts_module
from byol.serve.extract.engine import Options
from byol.serve.extract.resumable import Share, Task, complete, fill
from byol.serve.features.parts import PartsFolder
from byol.serve.features.read import read_features
from tests.support.command_line import Outcome, byol
from tests.support.folders import contents
from tests.support.inputs.odd_images import odd_images, stacks
from tests.support.small import REPOSITORY
from tests.support.tiny import tiny_reference, write_images, write_tiny_bundle

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, other/, and images/: 60 in three classes, every tenth broken."""
    root = tmp_path_factory.mktemp("parts")
    write_tiny_bundle(root / "bundle")
    write_tiny_bundle(root / "other", seed=1)
    write_images(root / "images", {"cat": 25, "dog": 25, "owl": 10})
    for number, path in enumerate(sorted((root / "images").rglob("*.png"))):
        if number % 10 == 3:
            path.write_bytes(b"broken")
    (root / "images" / "dog" / "up").symlink_to(root / "images", target_is_directory=True)
    return root


def extract(place: Path, out: Path, *more: object, images: Path | None = None, part: int = 7) -> Outcome:
    words = ("--out", f"{out}/", *CPU, "--part-images", part, "--batch-size", 4, "--json", *more)
    return byol("extract", place / "bundle", images or place / "images", *words)


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, bytes]:
    """The files of an uninterrupted extraction."""
    done = extract(place, place / "whole")
    assert done.code == 0, done.err
    return contents(place / "whole")


def test_parts_hold_every_row_in_order(place: Path, whole: dict[str, bytes]) -> None:
    parts = [f"data/part-{number:05d}.parquet" for number in range(9)]  # 60 images, 7 each
    assert list(whole) == ["_errors/errors.parquet", "_manifest.json", *parts]
    read = read_features(place / "whole")
    source = open_source(place / "images")
    good = [i for i in range(60) if i % 10 != 3]
    assert read.ids == [source.ids[i] for i in good]
    assert read.labels == [source.labels[i] for i in good]
    transform = Bundle.open(place / "bundle").manifest.preprocess.transform()
    pixels = np.stack([transform(source.open(i)) for i in good])
    np.testing.assert_allclose(read.x, tiny_reference(place / "bundle", pixels), rtol=1e-4, atol=1e-5)


def test_manifest_and_errors_say_what_there_is(place: Path, whole: dict[str, bytes]) -> None:
    manifest = json.loads(whole["_manifest.json"])
    assert manifest["bundle_sha256"] == Bundle.open(place / "bundle").digest
    assert manifest["complete"] is True
    assert (manifest["images"], manifest["skipped"], manifest["dim"]) == (54, 7, 8)
    assert [part["rows"] + part["skipped"] for part in manifest["parts"]] == [7, 7, 7, 7, 7, 7, 7, 7 + 1, 4]
    errors = pq.read_table(place / "whole" / "_errors" / "errors.parquet").to_pylist()
    assert [row["path"] for row in errors if row["stage"] == "list"] == ["dog/up"]
    assert len([row for row in errors if row["stage"] == "decode"]) == 6


def test_stacks_and_animations_are_said_once(place: Path, tmp_path: Path) -> None:
    """By several parts, by several processes, and by the run that goes on with what is there."""
    images = stacks(write_images(tmp_path / "images", {"cat": 8, "dog": 8}))
    note = "3 of 19 images hold several pictures (a stack or an animation), of which the first is read: "
    note += "cat/a.gif, cat/b.tif, dog/c.png\n"
    for name, more in (("one", ()), ("two", ("--processes", 2)), ("two", ())):
        done = extract(place, tmp_path / name, *more, images=images, part=5)
        assert done.code == 0, done.err
        assert done.err.count("several pictures") == 1
        assert note in done.err
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    file = byol("extract", place / "bundle", images, "--out", tmp_path / "f.parquet", *CPU)
    assert file.err == note
    table = byol("knn", place / "bundle", "--train", images, "--k", 1, *CPU)
    assert table.err.count("several pictures") == 1
    assert note in table.err


def test_without_stacks_nothing_is_said(place: Path, tmp_path: Path) -> None:
    done = byol("extract", place / "bundle", write_images(tmp_path / "i", {"a": 3}), "--out", tmp_path / "f.npz", *CPU)
    assert done.err == ""


def test_a_complete_extraction_is_left_alone(place: Path, whole: dict[str, bytes]) -> None:
    done = extract(place, place / "whole")
    values = json.loads(done.out)
    assert (done.code, values["images"], values["images_per_second"]) == (0, 54, None)
    assert "nothing left to do: " in done.err
    assert contents(place / "whole") == whole


@pytest.mark.parametrize("kept", [0, 1, 5, 9])
def test_it_goes_on_behind_the_last_finished_part(
    place: Path, whole: dict[str, bytes], tmp_path: Path, kept: int
) -> None:
    begun = json.loads(whole["_manifest.json"])
    begun = {key: begun[key] for key in begun if key not in ("images", "skipped", "parts")} | {"complete": False}
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "_manifest.json").write_text(json.dumps(begun))
    for number in range(kept):
        name = f"data/part-{number:05d}.parquet"
        (tmp_path / "out" / name).write_bytes(whole[name])
    (tmp_path / "out" / "data" / f".part-{kept:05d}.parquet.tmp").write_bytes(b"half of it")
    done = extract(place, tmp_path / "out")
    assert (done.code, json.loads(done.out)["images"]) == (0, 54), done.err
    assert contents(tmp_path / "out") == whole


def test_files_that_go_or_come_meanwhile_move_no_other(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"cat": 25})
    assert extract(place, tmp_path / "out", images=images).code == 0
    (tmp_path / "out" / "data" / "part-00003.parquet").unlink()
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    (tmp_path / "out" / "_manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    (images / "cat" / "001.png").unlink()  # in a part that is finished
    (images / "cat" / "022.png").unlink()  # in the one that is not
    (images / "cat" / "999.png").write_bytes(odd_images()["one.png"])
    done = extract(place, tmp_path / "out", images=images)
    assert done.code == 0, done.err
    assert read_features(tmp_path / "out").ids == [f"cat/{n:03d}.png" for n in (*range(22), 23, 24, 999)]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--dtype", "float16"], ["dtype float32, now float16"]),
        (["--part-images", "8"], ["part_images 7, now 8"]),
    ],
)
def test_other_settings_are_refused(place: Path, whole: dict[str, bytes], more: list[str], words: list[str]) -> None:
    done = extract(place, place / "whole", *more)
    assert done.code == 1
    for word in ("holds another extraction", "use an empty folder", *words):
        assert word in done.err
    assert contents(place / "whole") == whole


def test_another_bundle_or_source_is_refused(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    words = ("--out", f"{place / 'whole'}/", *CPU, "--part-images", 7)
    done = byol("extract", place / "other", place / "images", *words)
    old, new = (Bundle.open(place / name).digest[:12] for name in ("bundle", "other"))
    assert (done.code, f"bundle_sha256 {old}, now {new}" in done.err) == (1, True)
    done = byol("extract", place / "bundle", place / "images" / "cat", *words)
    assert (done.code, "source images, now cat; use an empty folder" in done.err) == (1, True)
    assert contents(place / "whole") == whole


def test_a_list_of_relative_paths_is_gone_on_from_where_it_was_begun(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((place / "images").rglob("*.png"))
    (tmp_path / "list.txt").write_text("".join(f"{path.relative_to(place)}\n" for path in files[:9]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(place)

    def again() -> Outcome:
        return extract(place, tmp_path / "out", images=tmp_path / "list.txt", part=4)

    assert again().code == 0
    (tmp_path / "out" / "data" / "part-00001.parquet").unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = again()
    said = (
        f"relative paths, now looked for in {tmp_path / 'elsewhere'}, started in another folder: run the command there"
    )
    assert (done.code, said in done.err) == (1, True)
    monkeypatch.chdir(place)
    assert again().code == 0


def test_another_variant_is_named(tmp_path: Path) -> None:
    PartsFolder(tmp_path, {DIGEST_KEY: "ab" * 32}).begin(None)
    with pytest.raises(ValueError, match="holds another extraction: variant fp32, now fp16; use an empty folder"):
        PartsFolder(tmp_path, {DIGEST_KEY: f"{'ab' * 32}/encoder.fp16.onnx"}).manifest()


def test_an_npz_that_changed_is_refused(place: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    assert extract(place, tmp_path / "out", images=tmp_path / "a.npz").code == 0
    assert read_features(tmp_path / "out").ids == [str(i) for i in range(20)]
    (tmp_path / "out" / "data" / "part-00002.parquet").unlink()
    np.savez(tmp_path / "a.npz", images=images[::-1])
    done = extract(place, tmp_path / "out", images=tmp_path / "a.npz")
    assert (done.code, "has changed since" in done.err) == (1, True)


def copied(whole: dict[str, bytes], out: Path) -> Path:
    for name, content in whole.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return out


@pytest.mark.parametrize("missing", [[0], [2, 3], [0, 4, 8]])
def test_missing_parts_are_made_again(place: Path, whole: dict[str, bytes], tmp_path: Path, missing: list[int]) -> None:
    out = copied(whole, tmp_path / "out")
    for number in missing:
        (out / "data" / f"part-{number:05d}.parquet").unlink()
    done = extract(place, out)
    assert done.code == 0, done.err
    assert contents(out) == whole


def test_a_missing_part_of_a_folder_that_changed_is_not_guessed(
    place: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", {"cat": 25})
    assert extract(place, tmp_path / "out", images=images).code == 0
    (tmp_path / "out" / "data" / "part-00001.parquet").unlink()
    (images / "cat" / "0085.png").write_bytes(odd_images()["one.png"])
    done = extract(place, tmp_path / "out", images=images)
    assert (done.code, "has changed since" in done.err) == (1, True), done.err


def test_a_damaged_part_is_named(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = copied(whole, tmp_path / "out")
    part = out / "data" / "part-00002.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    done = extract(place, out)
    assert (done.code, "part-00002.parquet is not a usable part" in done.err) == (1, True), done.err


def flattened(whole: dict[str, bytes], out: Path, complete: bool) -> Path:
    """The same extraction as an earlier version laid it out."""
    out.mkdir()
    for name, content in whole.items():
        (out / name.rpartition("/")[2]).write_bytes(content)
    manifest = json.loads(whole["_manifest.json"]) | {"format": 1, "complete": complete}
    (out / "_manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return out


@pytest.mark.parametrize("complete", [True, False])
def test_what_an_earlier_version_began_goes_on_as_it_is(
    place: Path, whole: dict[str, bytes], tmp_path: Path, complete: bool
) -> None:
    out = flattened(whole, tmp_path / "out", complete)
    before = contents(flattened(whole, tmp_path / "complete", True))
    if not complete:
        (out / "part-00004.parquet").unlink()
        (out / "errors.parquet").unlink()
    done = extract(place, out)
    assert done.code == 0, done.err
    assert contents(out) == before
    assert read_features(out).ids == read_features(place / "whole").ids


def test_max_errors_stops_and_a_later_run_goes_on(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    done = extract(place, tmp_path / "out", "--max-errors", 3)
    assert (done.code, "more than --max-errors" in done.err) == (1, True), done.err
    finished = contents(tmp_path / "out")
    assert "data/part-00002.parquet" in finished
    assert {name: whole[name] for name in finished if name.startswith("data/")}.items() <= finished.items()
    assert extract(place, tmp_path / "out", "--max-errors", 7).code == 0
    assert contents(tmp_path / "out") == whole


def test_limits_hold_for_a_complete_folder_too(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = copied(whole, tmp_path / "out")
    for limit in (("--max-errors", 6), ("--on-error", "fail")):
        done = extract(place, out, *limit)
        assert (done.code, "7 images were skipped" in done.err) == (1, True), done.err
    assert extract(place, out, "--max-errors", 7).code == 0
    assert contents(out) == whole


def test_what_was_left_out_is_listed_also_where_it_stopped(place: Path, tmp_path: Path) -> None:
    assert extract(place, tmp_path / "out", "--max-errors", 3).code == 1
    errors = pq.read_table(tmp_path / "out" / "_errors" / "errors.parquet").to_pylist()
    assert [row["path"] for row in errors] == ["cat/003.png", "cat/013.png", "cat/023.png"]


def test_a_second_command_on_a_folder_is_refused_and_changes_nothing(
    place: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fill, second = tmp_path / "out", parts_module.fill, list[Outcome]()

    def interrupted_fill(*arguments: Any) -> None:
        if not second:
            (out / "data").mkdir()
            (out / "data" / ".part-00000.parquet.tmp").write_bytes(b"half of it")
            before = contents(out)
            second.append(extract(place, out))
            assert contents(out) == before
            (out / "data" / ".part-00000.parquet.tmp").unlink()
        fill(*arguments)

    monkeypatch.setattr(parts_module, "fill", interrupted_fill)
    first = extract(place, out)
    assert second[0].code == 1
    assert second[0].err == f"Error: another process is writing {out}; wait for it, or choose another place\n"
    assert first.code == 0, first.err
    assert contents(out) == whole


def test_a_failure_removes_no_folder_that_was_begun_before(place: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"cat": 8})
    (tmp_path / "out").mkdir()
    settings = Task(images, tmp_path / "out", Options(), 7).folder(Bundle.open(place / "bundle").digest, 8)
    settings.begin(None)
    (images / "cat" / "000.png").write_bytes(b"broken")
    done = extract(place, tmp_path / "out", "--on-error", "fail", images=images)
    assert (done.code, list(contents(tmp_path / "out"))) == (1, ["_manifest.json"])


def test_float16_is_half_the_size_and_reads_back(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    for out in (f"{tmp_path}/parts/", f"{tmp_path}/f.parquet", f"{tmp_path}/f.npz"):
        words = ("--out", out, *CPU, "--dtype", "float16")
        assert byol("extract", place / "bundle", place / "images", *words).code == 0
        read = read_features(out)
        np.testing.assert_allclose(read.x, read_features(place / "whole").x, rtol=1e-3, atol=1e-4)
    schema = pq.read_schema(tmp_path / "f.parquet")
    assert str(schema.field("features").type.value_type) == "halffloat"


def test_a_part_without_a_readable_image_is_empty(place: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"cat": 12})
    for number in range(4, 8):
        (images / "cat" / f"{number:03d}.png").write_bytes(b"")
    assert extract(place, tmp_path / "out", images=images, part=4).code == 0
    assert pq.read_metadata(tmp_path / "out" / "data" / "part-00001.parquet").num_rows == 0
    assert len(read_features(tmp_path / "out")) == 8


def test_a_full_disk_ends_it_cleanly(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a part has more bytes

    words = [place / "bundle", place / "images", "--out", f"{tmp_path}/out/", *CPU, "--part-images", 7]
    words += ["--batch-size", 4]
    command = [sys.executable, "-m", "byol", "extract", *map(str, words)]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert extract(place, tmp_path / "out").code == 0
    assert contents(tmp_path / "out") == whole


# One process imports the command and forks its lives: each is killed at an operation on its output, some later than the
# one before. A part takes eight of them, so that in time a kill comes at each.
LIVES = """
import os, signal, sys
import byol.serve.commands.extract, byol.serve.encoder, byol.serve.extract.resumable
from byol.cli import main

out, left = sys.argv.pop(1), 0

def kill(event, arguments):
    global left
    if event in ("open", "os.mkdir", "os.scandir", "os.rename", "os.remove", "os.rmdir"):
        left -= out in str(arguments)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

def live(operations):
    global left
    left = operations
    sys.addaudithook(kill)
    try:
        main()
    except SystemExit as error:
        os._exit(error.code or 0)

for life in range(1, 150, 5):
    child = os.fork()
    if child == 0:
        live(life)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        sys.exit(status)
    print("parts:", sum(name.startswith("part-") for _, _, names in os.walk(out) for name in names))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_again_and_again_it_ends_byte_identical(place: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    words = ["extract", place / "bundle", place / "images", "--out", f"{tmp_path}/out/", *CPU, "--part-images", 7]
    command = [sys.executable, "-c", LIVES, str(tmp_path / "out"), *map(str, words), "--batch-size", "4"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == whole
    found = [int(parts) for parts in re.findall(r"^parts: (\d+)$", done.stdout, re.MULTILINE)]  # after each death
    assert found == sorted(found)
    assert len({parts for parts in found if 0 < parts < 9}) > 2, found


# ---------------------------------------------------------------------------------------------------- sections


@pytest.mark.parametrize("size", [1, 7, 60, 100])
def test_sections_are_the_listing(place: Path, size: int) -> None:
    source = open_source(place / "images")
    sections = list(open_sections(place / "images", size))
    assert [i for s in sections for i in s.source.ids] == list(source.ids)
    assert [label for s in sections for label in s.source.labels] == list(source.labels)
    assert [item for s in sections for item in s.source.skipped] == list(source.skipped)
    assert {len(s.source) for s in sections[:-1]} <= {size}
    for number, section in enumerate(sections):  # from every end on, the same follows
        again = list(open_sections(place / "images", size, section.end))
        assert [s.source.ids[:] for s in again] == [s.source.ids[:] for s in sections[number + 1 :]]
        assert [list(s.source.skipped) for s in again] == [list(s.source.skipped) for s in sections[number + 1 :]]


def test_work_begins_before_the_listing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, {f"class-{number}": 3 for number in range(5)})
    scanned: list[bytes] = []
    scandir = os.scandir

    def counted(path: bytes) -> object:
        scanned.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    sections = open_sections(tmp_path, 3)
    next(sections)
    assert len(scanned) <= 3  # the root, the first class, and one ahead
    assert len(list(sections)) == 4
    assert len(scanned) == 6


def test_parts_that_were_listed_differently_are_not_joined(place: Path, tmp_path: Path) -> None:
    """As when two processes list a folder to which a file is added between their listings."""
    images = write_images(tmp_path / "images", {"cat": 25})
    encoder = Encoder(place / "bundle", "cpu")
    task = Task(images, tmp_path / "out", Options(), part_images=7)
    parts = task.folder(encoder.digest, encoder.feature_dim)

    def compute(stored: Any, finished: Any) -> None:
        fill(encoder, task, parts, stored, finished, lambda _: None, Share(0, 2))
        (images / "cat" / "!.png").write_bytes(odd_images()["one.png"])
        fill(encoder, task, parts, parts.manifest(), finished, lambda _: None, Share(1, 2))

    with pytest.raises(ValueError, match=r"has changed while it was extracted; run the same command again"):
        complete(task, parts, lambda _: None, compute)
    for _ in range(3):  # each repairs what it can
        done = extract(place, tmp_path / "out", images=images)
        if done.code == 0:
            break
    assert done.code == 0, done.err
    ids = read_features(tmp_path / "out").ids
    assert sorted(set(ids)) == sorted(ids)
    assert set(ids) >= {f"cat/{n:03d}.png" for n in range(25)}


def test_a_retry_that_cannot_begin_leaves_the_folder_complete(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "images", tmp_path / "images", symlinks=True)
    assert extract(place, tmp_path / "out", images=tmp_path / "images").code == 0
    before = contents(tmp_path / "out")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert extract(place, tmp_path / "out", "--retry-skipped", images=tmp_path / "images").code != 0
    assert contents(tmp_path / "out") == before
    assert json.loads(before["_manifest.json"])["complete"] is True
