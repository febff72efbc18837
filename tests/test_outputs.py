"""An output replaces no input and nothing that byol did not write, and this is known before the work."""

from __future__ import annotations

import csv
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from byol import outputs
from byol.bundle.folder import require_place
from byol.images.grid import Tile, draw_grid
from byol.outputs import Kind, require_output, require_output_folder
from byol.serve.features.parts import PartsFolder
from byol.serve.features.write import feature_file, write_errors
from tests.support.command_line import Outcome, byol
from tests.support.tiny import write_images, write_tiny_bundle

CPU = ("--device", "cpu")
ANY = Kind("a file", lambda _: False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/, labelled train/ and test/, data.npz of images, and a bundle that classifies."""
    root = tmp_path_factory.mktemp("outputs")
    write_tiny_bundle(root / "bundle")
    write_images(root / "train", {"cat": 6, "dog": 6})
    write_images(root / "test", {"cat": 3, "dog": 3}, seed=1)
    np.savez(root / "data.npz", images=np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    done = byol("linear", root / "bundle", *sets(root), "--save-classifier", root / "with", *CPU)
    assert done.code == 0, done.err
    return root


def sets(root: Path) -> tuple[object, ...]:
    return "--train", root / "train", "--test", root / "test"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def mine(place: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder of somebody's files under the names of outputs; none of them may change."""
    with open(tmp_path / "table.parquet", "wb") as stream:
        pq.write_table(pa.table({"id": ["a"], "label": ["b"], "features": [[1.0]]}), stream)
    np.savez(tmp_path / "table.npz", features=np.zeros((2, 3), np.float32))
    (tmp_path / "table.csv").write_text("id,label,predicted,probability\na,,cat,0.5\n")
    (tmp_path / "a.png").write_bytes((place / "train" / "cat" / "000.png").read_bytes())
    (tmp_path / "a.html").write_text("<!doctype html><title>mine</title>")
    (tmp_path / "a.csv").write_text("class,cat,dog\ncat,1,2\nbird,0,1\n")
    before, images = snapshot(tmp_path), snapshot(place / "train")
    yield tmp_path
    assert snapshot(tmp_path) == before
    assert snapshot(place / "train") == images


def assert_refused(done: Outcome, *words: str) -> None:
    assert done.code == 2, done.err
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    assert "device:" not in done.err  # before any work


@pytest.mark.parametrize(
    "words",
    [
        lambda root, mine: ("extract", root / "bundle", root / "train", "--out", mine / "table.parquet"),
        lambda root, mine: ("extract", root / "bundle", root / "train", "--out", mine / "table.npz"),
        lambda root, mine: ("classify", root / "with", root / "train", "--out", mine / "table.parquet"),
        lambda root, mine: ("classify", root / "with", root / "train", "--out", mine / "table.csv"),
        lambda root, mine: ("linear", root / "bundle", *sets(root), "--confusion", mine / "a.png"),
        lambda root, mine: ("linear", root / "bundle", *sets(root), "--confusion", mine / "a.csv"),
        lambda root, mine: (
            *("neighbors", root / "bundle", "--bank", root / "train", "--query", root / "test"),
            *("--grid", mine / "a.png"),
        ),
        lambda root, mine: ("report", root / "bundle", *sets(root), "--out", mine / "a.html"),
    ],
)
def test_somebodys_file_is_not_replaced(
    place: Path, mine: Path, words: Callable[[Path, Path], tuple[object, ...]]
) -> None:
    assert_refused(byol(*words(place, mine)), "exists and is not a", "choose another name, or move it away")


def test_the_source_itself_is_refused_under_every_spelling(place: Path, mine: Path, monkeypatch) -> None:
    data = place / "data.npz"
    os.link(data, place / "hard.npz")
    (place / "soft.npz").symlink_to("data.npz")
    monkeypatch.chdir(place)
    before = data.read_bytes()
    for out in (data, "data.npz", "./train/../data.npz", "hard.npz", "soft.npz"):
        assert_refused(byol("extract", "bundle", "data.npz", "--out", out), "is an input (data.npz)")
    assert_refused(byol("extract", "bundle", f"file://{data}", "--out", data), "is an input")
    grid = ("neighbors", "bundle", "--bank", "data.npz", "--query", "test", "--grid", "soft.npz")
    assert_refused(byol(*grid), "is an input (data.npz)")
    confusion = ("linear", "bundle", "--train", "data.npz", "--test", "test", "--confusion", data)
    assert_refused(byol(*confusion), "is an input (data.npz)")
    assert_refused(byol("report", "bundle", "--train", "data.npz", "--test", "test", "--out", data), "is an input")
    assert data.read_bytes() == before
    for name in ("hard.npz", "soft.npz"):
        (place / name).unlink()


def test_the_folder_of_the_source_or_of_the_bundle_takes_no_parts(place: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "shards", {"cat": 2})
    before = snapshot(tmp_path)
    (tmp_path / "link").symlink_to("shards")
    for out in (tmp_path / "shards", tmp_path / "link", f"{tmp_path}/shards/"):
        done = byol("extract", place / "bundle", tmp_path / "shards", "--out", out)
        assert_refused(done, "is an input")
    assert_refused(byol("extract", place / "bundle", place / "test", "--out", f"{place}/bundle/"), "is an input")
    assert snapshot(tmp_path / "shards") == snapshot(tmp_path / "link") != {}
    assert {f"shards/{k}": v for k, v in snapshot(tmp_path / "shards").items()} == before


def test_an_export_never_replaces_its_source(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    bundle, link = place / "bundle", tmp_path / "link"
    link.symlink_to(bundle)
    before = snapshot(bundle)
    torchvisions = ("--from", "torchvision", "--arch", "resnet18")
    for source, out, *words in (
        (bundle, bundle, "--untrained"),
        (link, bundle, "--untrained"),
        (bundle, link, "--untrained"),
        (bundle / "encoder.safetensors", bundle, *torchvisions),
        (link / "encoder.safetensors", f"{place}/test/../bundle/", *torchvisions),
    ):
        assert_refused(byol("export", source, "--out", out, *words), "would replace an input", "choose another name")
    assert snapshot(bundle) == before


def test_a_folder_that_is_no_bundle_is_refused_as_the_option_is(place: Path, mine: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    for option, words in (
        ("--out", ("export", place / "bundle", "--untrained", "--out", mine)),
        ("--triton", ("export", place / "bundle", "--untrained", "--out", mine / "new", "--triton", mine)),
    ):
        assert_refused(byol(*words), f"Invalid value for {option}", "exists and is not a")


@pytest.mark.parametrize("command", ["extract", "classify", "report", "train", "finetune", "export", "demo"])
def test_an_empty_name_is_refused(place: Path, command: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = {
        "report": ("report", place / "bundle"),
        "train": ("train", place / "train"),
        "finetune": ("finetune", place / "bundle", place / "train"),
        "export": ("export", place / "bundle"),
        "demo": ("demo",),
    }.get(command, (command, place / "with", place / "train"))
    assert_refused(byol(*words, "--out", ""), "the name is empty")
    assert os.listdir(tmp_path) == []


def own_files(folder: Path) -> dict[Path, Kind]:
    """One file of each kind, as byol writes it."""
    for name in ("f.parquet", "f.npz"):
        with feature_file(folder / name, 3, "ab" * 32) as write:
            write(["a", "b"], ["x", None], np.zeros((2, 3), np.float32))
    write_errors(folder / "e.parquet", [], [skipped("bad.png")])
    draw_grid(folder / "g.png", [[Tile(Image.new("RGB", (4, 4)))]])
    return {
        folder / "f.parquet": outputs.FEATURES,
        folder / "f.npz": outputs.FEATURES,
        folder / "e.parquet": outputs.ERRORS,
        folder / "g.png": outputs.GRID,
    }


def skipped(path: str):
    from byol.images.source import Skipped

    return Skipped(path, "no image")


def test_what_byol_wrote_is_known_by_itself_and_is_of_one_kind(tmp_path: Path) -> None:
    files = own_files(tmp_path)
    for path, own in files.items():
        for kind in (outputs.FEATURES, outputs.CLASSES, outputs.ERRORS, outputs.CONFUSION, outputs.GRID, outputs.PAGE):
            assert kind.holds(path) is (kind is own), (path, kind.name)
        path.write_bytes(path.read_bytes()[:40])  # damaged: nobody's
        assert not own.holds(path)
    assert not outputs.FEATURES.holds(tmp_path)
    assert not outputs.GRID.holds(tmp_path / "nothing")


def test_a_second_run_writes_over_the_first(place: Path, tmp_path: Path) -> None:
    out = {name: tmp_path / name for name in ("f.parquet", "f.npz", "c.parquet", "c.csv", "m.csv", "g.png")}
    commands = [
        ("extract", place / "bundle", place / "test", "--out", out["f.parquet"]),
        ("extract", place / "bundle", place / "test", "--out", out["f.npz"]),
        ("classify", place / "with", place / "test", "--out", out["c.parquet"]),
        ("classify", place / "with", place / "test", "--out", out["c.csv"]),
        ("linear", place / "bundle", *sets(place), "--confusion", out["m.csv"]),
        (
            *("neighbors", place / "bundle", "--bank", place / "train", "--query", place / "test"),
            *("--k", 2, "--grid", out["g.png"]),
        ),
    ]
    for words in commands:
        for _ in range(2):
            done = byol(*words, *CPU)
            assert done.code == 0, done.err
    assert sorted(os.listdir(tmp_path)) == sorted(out)


def test_an_empty_file_that_was_made_for_the_output_is_taken(place: Path, tmp_path: Path) -> None:
    (tmp_path / "f.parquet").touch()
    assert byol("extract", place / "bundle", place / "test", "--out", tmp_path / "f.parquet", *CPU).code == 0


def test_files_of_earlier_versions_are_known(tmp_path: Path) -> None:
    with open(tmp_path / "classes.csv", "wb") as stream:
        schema = pa.schema([(name, pa.string()) for name in ("id", "label", "predicted")] + [("probability", "float")])
        with pyarrow.csv.CSVWriter(stream, schema) as writer:
            writer.write_table(pa.table([["a\nb"], [None], ["cat"], [0.25]], schema=schema))
    with open(tmp_path / "confusion.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["class", "a,b", "c"], ["a,b", 3, 0], ["c", 1, 2]])
    page = "<!doctype html>\n<html><head><meta http-equiv='Content-Security-Policy'><title>x · byol report</title>"
    (tmp_path / "page.html").write_text(page)
    assert outputs.CLASSES.holds(tmp_path / "classes.csv")
    assert outputs.CONFUSION.holds(tmp_path / "confusion.csv")
    assert outputs.PAGE.holds(tmp_path / "page.html")


@pytest.mark.parametrize(
    "text", ["class,a\n", "class,a\nb,1\n", "class,a\na,x\n", "class,a\na,1\na,1\n", "id,a\na,1\n", "class,a\na,1,2\n"]
)
def test_other_tables_are_no_confusion_matrix(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert not outputs.CONFUSION.holds(tmp_path / "a.csv")


# ------------------------------------------------------------------------------------------- lists of errors


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    images = write_images(tmp_path / "broken", {"cat": 2})
    (images / "cat" / "bad.png").write_bytes(b"no image")
    return images


def test_every_output_has_a_list_of_errors_of_its_own(place: Path, broken: Path, tmp_path: Path) -> None:
    for name in ("a.parquet", "a.npz"):
        assert byol("extract", place / "bundle", broken, "--out", tmp_path / name, *CPU).code == 0
    assert byol("extract", place / "bundle", place / "test", "--out", tmp_path / "a.npz", *CPU).code == 0
    assert (tmp_path / "a.parquet.errors.parquet").exists()
    assert not (tmp_path / "a.npz.errors.parquet").exists()


@pytest.mark.parametrize("images", ["broken", "good"])
def test_a_file_under_the_name_of_the_list_is_neither_replaced_nor_removed(
    place: Path, broken: Path, tmp_path: Path, images: str
) -> None:
    source = broken if images == "broken" else place / "test"
    (tmp_path / "a.parquet.errors.parquet").write_text("mine")
    done = byol("extract", place / "bundle", source, "--out", tmp_path / "a.parquet", *CPU)
    assert_refused(done, "a.parquet.errors.parquet exists and is not a list of errors")
    (tmp_path / "out" / "_errors").mkdir(parents=True)
    (tmp_path / "out" / "_errors" / "errors.parquet").write_text("mine")
    done = byol("extract", place / "bundle", source, "--out", f"{tmp_path}/out/", *CPU)
    assert (done.code, "errors.parquet exists and is not a list of errors" in done.err) == (1, True)
    assert snapshot(tmp_path / "out") == {"_errors/errors.parquet": b"mine"}
    assert (tmp_path / "a.parquet.errors.parquet").read_text() == "mine"


@pytest.mark.parametrize("length", [100, 247, 255])
def test_names_of_any_legal_length_are_written(place: Path, broken: Path, tmp_path: Path, length: int) -> None:
    out = tmp_path / ("é" * 20 + "n" * (length - 40 - len(".parquet")) + ".parquet")
    assert len(os.fsencode(out.name)) == length
    done = byol("extract", place / "bundle", broken, "--out", out, *CPU)
    assert done.code == 0, done.err
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 3
    assert out.name in names
    assert [name for name in names if name.endswith(".errors.parquet")] != []


# ---------------------------------------------------------------------------------------- special files, links


def test_pipes_devices_and_sockets_are_refused_before_the_work(place: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "device.parquet").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.parquet"))
        (tmp_path / "loop.parquet").symlink_to("loop.parquet")
        (tmp_path / "folder.csv").mkdir()
        for name in ("pipe", "device", "socket", "loop"):
            done = byol("extract", place / "bundle", place / "test", "--out", tmp_path / f"{name}.parquet")
            assert_refused(done, "is not writable")
        done = byol("extract", place / "bundle", place / "test", "--out", f"{tmp_path}/pipe.parquet/")
        assert_refused(done, "--out")
    os.mkfifo(tmp_path / "pipe")
    done = byol("extract", place / "bundle", place / "test", "--out", tmp_path / "pipe")
    assert_refused(done, "is not a folder")


def test_behind_a_link_the_target_is_written_and_the_link_stays(place: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "f.parquet").symlink_to("disk/features.parquet")
    for _ in range(2):
        assert byol("extract", place / "bundle", place / "test", "--out", tmp_path / "f.parquet", *CPU).code == 0
    assert (tmp_path / "f.parquet").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["features.parquet"]
    (tmp_path / "parts").symlink_to("disk/deep/parts")
    assert byol("extract", place / "bundle", place / "test", "--out", tmp_path / "parts", *CPU).code == 0
    assert (tmp_path / "disk" / "deep" / "parts" / "data" / "part-00000.parquet").exists()


def test_a_place_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "x", tmp_path / ("n" * 256)):
        with pytest.raises(ValueError, match=r"(is not writable|cannot be created)"):
            require_output(path, ANY)
    with pytest.raises(ValueError, match="is not a folder"):
        require_output_folder(tmp_path / "file")
    require_output(tmp_path / "new" / "deep" / "x", ANY, [None])


# ----------------------------------------------------------------------------------------------------- folders


def test_an_unfinished_file_of_somebody_in_another_folder_is_not_swept(place: Path, tmp_path: Path) -> None:
    (tmp_path / "part-1.parquet").write_text("mine")
    (tmp_path / ".part-1.parquet.tmp").write_text("mine too")
    done = byol("extract", place / "bundle", place / "test", "--out", f"{tmp_path}/", *CPU)
    assert (done.code, "of another extraction" in done.err) == (1, True)
    assert snapshot(tmp_path) == {"part-1.parquet": b"mine", ".part-1.parquet.tmp": b"mine too"}


def test_a_manifest_of_other_files_is_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "a.txt").write_text("mine")
    (tmp_path / "app" / "manifest.json").write_text(json.dumps({"schema_version": 1, "files": {"a.txt": {}}}))
    with pytest.raises(ValueError, match="exists and is not a bundle"):
        require_place(tmp_path / "app")


def test_a_manifest_names_the_source_without_its_folders_and_secrets(place: Path, tmp_path: Path) -> None:
    from byol.serve.extract.engine import Options
    from byol.serve.extract.resumable import Task

    assert byol("extract", place / "bundle", place / "test", "--out", f"{tmp_path}/out/", *CPU).code == 0
    text = (tmp_path / "out" / "_manifest.json").read_text()
    assert json.loads(text)["source"] == "test"
    assert str(place) not in text
    url = Task("https://me:secret@host/images?key=secret", tmp_path / "x", Options())
    assert "secret" not in json.dumps(url.folder("d", 1).settings)


def test_a_folder_that_an_earlier_version_began_is_gone_on_with(place: Path, tmp_path: Path) -> None:
    def extract(images: Path) -> Outcome:
        words = ("--out", f"{tmp_path}/out/", *CPU, "--part-images", 2)
        return byol("extract", place / "bundle", images, *words)

    assert extract(place / "test").code == 0
    whole = snapshot(tmp_path / "out")
    manifest = tmp_path / "out" / "_manifest.json"
    values = json.loads(manifest.read_text()) | {"source": str(place / "test"), "complete": False}
    del values["source_sha256"]
    manifest.write_text(json.dumps(values))
    (tmp_path / "out" / "data" / "part-00001.parquet").unlink()
    done = extract(place / "train")
    assert (done.code, "source test, now train" in done.err) == (1, True)
    assert extract(place / "test").code == 0
    assert snapshot(tmp_path / "out") == whole


def test_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    from byol.serve.features.parts import named_source

    PartsFolder(tmp_path, {"bundle_sha256": "a", **named_source("/x/photos")}).begin(None)
    with pytest.raises(ValueError, match=r"source photos, now one of that name in another folder \(if it has"):
        PartsFolder(tmp_path, {"bundle_sha256": "a", **named_source("/y/photos")}).manifest()


def test_fetch_replaces_only_a_data_set(tmp_path: Path, monkeypatch) -> None:
    from byol.commands.fetch import DATA_SET, fetch_named

    monkeypatch.setenv("BYOL_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "cifar10-test.npz").write_text("mine")
    with pytest.raises(ValueError, match=r"cifar10-test.npz exists and is not a data set"):
        fetch_named("cifar10", tmp_path)
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 2, 2, 3), np.uint8), labels=np.zeros(1))
    assert DATA_SET.holds(tmp_path / "a.npz")
