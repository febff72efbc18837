"""A run that goes on with less room, fewer threads, another default: its weights end the same, bit for bit."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from byol.files.regular import SourceUnavailable
from byol.images.cache import DecodedCache
from byol.images.open import open_source
from byol.images.source import Skipped
from byol.run import is_run_folder
from byol.signals import Ended
from byol.training import device, job
from byol.training.begun import Begun, difference
from byol.training.data import decoded
from byol.training.data.decoded import open_images
from byol.training.data.intake import ImageTensor, Intake, StreamedImages
from byol.training.recipes.settings import Job
from byol.training.run_folder import RunFolder
from tests.support.runs import run_training
from tests.support.small import config, folder

STEPS = 6


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of this test's own that also takes few images."""
    monkeypatch.setattr(decoded, "SMALL", 0)
    monkeypatch.setenv("BYOL_HOME", str(tmp_path / "home"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(tmp_path: Path, kind: str) -> Path:
    """20 pictures, two of them broken: a folder, a list of them, or a Parquet file of 20 row groups."""
    made: Path = folder(tmp_path / "images")
    for name in ("cat/003.png", "dog/007.png"):
        (made / name).write_bytes(b"broken")
    files = sorted(made.rglob("*.png"))
    if kind == "list":
        (tmp_path / "list.txt").write_text("".join(f"{file}\n" for file in files))
        return tmp_path / "list.txt"
    if kind == "parquet":
        table = pa.table({"image": [file.read_bytes() for file in files]})
        pq.write_table(table, tmp_path / "images.parquet", row_group_size=1)
        return tmp_path / "images.parquet"
    return made


def train(images: Path, out: Path, stop_after: int = 0, resume: bool = False, **changes: Any) -> None:
    """A run of six steps; `stop_after` so many it is stopped by a signal."""
    log = RunFolder.log

    def stopping(run: RunFolder, record: dict[str, Any]) -> None:
        log(run, record)
        if record["step"] == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "log", stopping)
        settings = config(max_steps=STEPS, **changes)
        if stop_after:
            with pytest.raises(Ended, match=f"after step {stop_after}"):
                run_training(settings, images, out, resume=resume)
        else:
            run_training(settings, images, out, resume=resume)


def weights(run: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(run / "last.safetensors").items()}


def room(patch: pytest.MonkeyPatch, gigabytes: int) -> None:
    patch.setenv("BYOL_CACHE_GB", str(gigabytes))


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize(("first", "then"), [(100, 0), (0, 100)])
def test_room_that_comes_or_goes_changes_nothing(
    tmp_path: Path, kind: str, first: int, then: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = images(tmp_path, kind)
    room(monkeypatch, first)
    train(found, tmp_path / "whole")
    train(found, tmp_path / "run", stop_after=2)
    room(monkeypatch, then)
    train(found, tmp_path / "run", stop_after=4, resume=True)
    assert "streamed" in capfd.readouterr().err
    room(monkeypatch, first)
    train(found, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["data"]["images"] == (18 if first else 20)
    assert stored["feed"] == ("decoded" if first else "streamed")


def test_without_a_word_of_it_both_ways_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above could not fail."""
    found = images(tmp_path, "parquet")
    for gigabytes in (0, 100):
        room(monkeypatch, gigabytes)
        train(found, tmp_path / str(gigabytes))
    assert weights(tmp_path / "0") != weights(tmp_path / "100")


def test_an_image_that_can_be_read_now_stays_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from byol.images import folder as module
    from byol.images.picture.read import read_image
    from byol.images.surroundings import UnreadableImage

    found = folder(tmp_path / "images")

    def refuse(path: bytes, anchors: object, least_side: int) -> object:
        if path.endswith(b"001.png"):
            raise UnreadableImage("Permission denied")
        return read_image(path, least_side=least_side)

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_image", refuse)
        train(found, tmp_path / "whole")
        train(found, tmp_path / "run", stop_after=2)
    train(found, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize("first", ["broken", "link"])
def test_a_readable_image_stays_in_beside_another_of_its_name_that_is_left_out(tmp_path: Path, first: str) -> None:
    """Tar files that were joined, or appended to, repeat names."""
    files = sorted(folder(tmp_path / "images").rglob("*.png"))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        twin = tarfile.TarInfo(files[5].name)
        if first == "link":
            twin.type, twin.linkname = tarfile.SYMTYPE, "elsewhere.png"
            tar.addfile(twin)
        else:
            twin.size = 6
            tar.addfile(twin, io.BytesIO(b"broken"))
        for file in files:
            tar.add(file, file.name)
    train(tmp_path / "images.tar", tmp_path / "whole")
    train(tmp_path / "images.tar", tmp_path / "run", stop_after=2)
    train(tmp_path / "images.tar", tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["images"] == 20


def test_an_image_that_cannot_be_read_any_more_is_named(tmp_path: Path) -> None:
    source = open_source(images(tmp_path, "folder"))
    begun = Intake(False, frozenset({3}))
    with pytest.raises(
        ValueError, match=r"1 images of the run can no longer be read .*first: dog/007.png: not an image.*restore"
    ):
        open_images(source, 16, cache=DecodedCache(limit=10**9), begun=begun)


def test_rows_of_a_run_are_streamed_or_decoded_in_the_same_order(tmp_path: Path) -> None:
    source = open_source(images(tmp_path, "parquet"))
    decoded = open_images(source, 16, cache=DecodedCache(limit=10**9))
    assert isinstance(decoded, ImageTensor)
    begun = Intake.from_text(Intake.of(decoded, source).to_text())
    assert begun.count(source) == 18
    with pytest.warns(UserWarning, match="its row groups are now read in any order"):
        streamed = open_images(source, 16, cache=DecodedCache(limit=0), begun=begun)
    assert isinstance(streamed, StreamedImages)
    assert streamed.source.blocks is None
    pixels, aspect = streamed.read(torch.arange(18))
    assert torch.equal(pixels, decoded.pixels[:18])
    assert torch.equal(aspect, decoded.aspect)


# ----------------------------------------------------------------------------------------- the machine's choices


def test_the_number_of_threads_and_the_precision_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("byol.training.begun.usable_cores", lambda: 2)
    found = folder(tmp_path / "images", per_class=6)
    settings: dict[str, Any] = {
        "precision": "auto",
        "image_size": 8,
        "batch_size": 4,
    }  # bf16 is slow where it is emulated
    with monkeypatch.context() as patch:
        patch.setattr(device, "_has_fast_bf16", lambda _: True)
        torch.set_num_threads(2)
        train(found, tmp_path / "whole", **settings)
        train(found, tmp_path / "run", stop_after=3, **settings)
    torch.set_num_threads(1)
    monkeypatch.setattr(device, "_has_fast_bf16", lambda _: False)
    train(found, tmp_path / "run", resume=True, **settings)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert torch.get_num_threads() == 1
    said = capfd.readouterr().err
    assert "fp32" not in said
    assert "bit for bit" not in said
    computed = json.loads((tmp_path / "run" / "config.json").read_text())["computed"]
    assert (computed["threads"], computed["precision"], computed["device"]) == (2, "bf16", "cpu")


def test_what_cannot_stay_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = folder(tmp_path / "images", per_class=4)
    train(found, tmp_path / "run", stop_after=1)
    place = tmp_path / "run" / "config.json"
    content = json.loads(place.read_text())
    content["computed"] |= {"threads": 4000, "processor": "another"}
    content["versions"]["torch"] = "1.0"
    place.write_text(json.dumps(content))
    train(found, tmp_path / "run", resume=True)
    here = torch.backends.cpu.get_cpu_capability()
    changed = f"processor {here} (was another), threads 1 (was 4000), torch {torch.__version__} (was 1.0)"
    assert f"the result will not be bit for bit that of an uninterrupted run; changed: {changed}" in (
        capfd.readouterr().err
    )


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    found = folder(tmp_path / "images", per_class=4)
    train(found, tmp_path / "whole")
    train(found, tmp_path / "run", stop_after=1)
    place = tmp_path / "run" / "config.json"
    content = json.loads(place.read_text())
    for name in ("feed", "computed"):
        del content[name]
    del content["data"]["content"]
    place.write_text(json.dumps(content))
    train(found, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    "content",
    [
        {"feed": "both", "skipped": []},
        {"feed": "streamed"},
        {"feed": "decoded", "skipped": [{"reason": "x"}]},
        {"feed": "decoded", "skipped": ["x"]},
        {"feed": "decoded", "skipped": [{"path": "x", "row": "1"}]},
        {"computed": []},
        {"computed": {"device": "cpu"}},
        {"computed": dict.fromkeys(("device", "processor", "precision", "compile", "processes", "threads"), "1")},
    ],
)
def test_damage_is_told(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"feed is|skipped is|computed is"):
        Begun.of(content)


def test_a_run_remembers_more_unreadable_images_than_its_settings_have_room_for(tmp_path: Path) -> None:
    """300,000 of them would make 25 MB, and `config.json` is read up to 16."""
    left_out = [Skipped(f"class {i % 9}/{i:09d}.jpg", "not an image, or cut off") for i in range(300_000)]
    run, feed = RunFolder(tmp_path / "run"), {"feed": "decoded"}
    begun = Intake(False, frozenset(range(7, 300_007)))
    run.create(config(), feed, begun.recorded(left_out))
    assert run.begun().intake == begun
    place = tmp_path / "run" / "config.json"
    assert place.stat().st_size < 1 << 20
    assert is_run_folder(str(tmp_path / "run"))  # so its views.png counts as no image
    listed = tmp_path / "run" / "skipped.jsonl"
    listed.write_bytes(listed.read_bytes().partition(b"\n")[2])
    with pytest.raises(ValueError, match=r"skipped.jsonl beside it lists 299,999 of 300,000 skipped images"):
        run.begun()


def test_a_run_with_all_its_unreadable_images_in_its_settings_goes_on(tmp_path: Path) -> None:
    """As earlier versions wrote it, however many there were."""
    run = RunFolder(tmp_path / "run")
    run.create(config(), {"feed": "decoded"})
    place = tmp_path / "run" / "config.json"
    content = {**json.loads(place.read_text()), "skipped": [{"path": str(i), "reason": ""} for i in range(500)]}
    del content["skipped_in_all"]
    place.write_text(json.dumps(content))
    intake = run.begun().intake
    assert intake is not None
    assert len(intake.left_out_ids) == 500
    assert intake.count(open_source(folder(tmp_path / "images"))) == 20


# ------------------------------------------------------------------------------------------ changed images


@pytest.mark.parametrize("kind", ["folder", "list", "parquet"])
def test_other_images_under_the_same_names_are_refused_and_copies_are_not(tmp_path: Path, kind: str) -> None:
    found = images(tmp_path, kind)
    train(found, tmp_path / "run", stop_after=1)
    changed = found if kind == "parquet" else tmp_path / "images" / "cat" / "000.png"
    kept = changed.read_bytes()
    for path in (tmp_path / "images").rglob("*.png"):
        os.utime(path, (1, 1))  # as of a copy
    shutil.copyfile(tmp_path / "images" / "dog" / "001.png", tmp_path / "images" / "cat" / "000.png")
    if kind == "parquet":
        files = sorted((tmp_path / "images").rglob("*.png"))
        pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), found, row_group_size=1)
    with pytest.raises(ValueError, match=r"and some of them have changed since, under the same names; give the images"):
        train(found, tmp_path / "run", resume=True)
    changed.write_bytes(kept)
    train(found, tmp_path / "run", resume=True)


def test_digests_that_an_earlier_version_did_not_keep_are_not_compared() -> None:
    now = {"name": "a", "images": 2, "digest": "0", "content": "1"}
    assert difference({"name": "a", "images": 2, "digest": "0"}, now) is None
    assert difference({**now, "content": "2"}, now) is not None
    assert difference({**now, "more": 1}, now) is not None


def test_a_folder_may_get_another_name_where_its_content_tells() -> None:
    stored = {"name": "photos", "images": 2, "digest": "0", "content": "1"}
    assert difference(stored, {**stored, "name": "photos-v1"}) is None
    assert str(difference(stored, {**stored, "name": "photos-v1", "content": "2"})).endswith("under the same names")
    of_earlier_version = {name: value for name, value in stored.items() if name != "content"}
    said = difference(of_earlier_version, {**stored, "name": "photos-v1"})
    assert said == "2 images of photos (digest 0), but the images now are 2 images of photos-v1 (digest 0)"


@pytest.fixture
def relative(tmp_path: Path) -> Path:
    """A folder that holds images and a list of them by relative paths."""
    here = tmp_path / "here"
    files = sorted(folder(here / "images").rglob("*.png"))
    (here / "list.txt").write_text("".join(f"{file.relative_to(here)}\n" for file in files))
    return here


def test_a_run_knows_where_the_relative_paths_of_its_list_start(
    tmp_path: Path, relative: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(relative)
    train(Path("list.txt"), tmp_path / "whole")
    train(Path("list.txt"), tmp_path / "run", stop_after=2)
    monkeypatch.chdir(tmp_path)
    job.run_training(Job(None, tmp_path / "run", resume=True), None)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_list_that_moved_with_its_images_is_the_same(
    tmp_path: Path, relative: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(relative)
    train(Path("list.txt"), tmp_path / "run", stop_after=2)
    moved = relative.rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    remedy = r"relative paths of .*list.txt were looked for in {}: if the images have moved, give DATA, the list, in"
    with pytest.raises(ValueError, match=r"list.txt does not exist.*the run began with these images: give DATA"):
        job.run_training(Job(None, tmp_path / "run", resume=True), None)
    with pytest.raises(SourceUnavailable, match="images cannot be read: .*" + remedy.format(tmp_path)):
        train(moved / "list.txt", tmp_path / "run", resume=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "others.png").touch()
    with pytest.raises(ValueError, match="some of them have changed since.*" + remedy.format(tmp_path)):
        train(moved / "list.txt", tmp_path / "run", resume=True)
    monkeypatch.chdir(moved)
    train(Path("list.txt"), tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["inputs"]["start"] == str(moved)
