"""Decoded images: the cache, streaming, the order of an epoch, and the feeds that hand batches to the device."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from byol.commands.cache import cache as cache_command
from byol.files.regular import SourceUnavailable
from byol.images import cache as cache_module
from byol.images import decode as images_module
from byol.images.cache import META, CacheError, DecodedCache, size_limit
from byol.images.columns import Labels
from byol.images.open import open_source
from byol.images.picture.pages import Several
from byol.images.picture.read import read_image
from byol.images.source import ImageSource
from byol.machine import usable_cores
from byol.training.data import decoded as module
from byol.training.data import intake
from byol.training.data.batches import FetchedFeed, Order, ResidentFeed, open_feed
from byol.training.data.decoded import canvas_side, load_canvases, open_images
from byol.training.data.intake import ImageTensor, StreamedImages
from byol.training.trainer import Trainer
from tests.support.inputs.odd_images import bad_images, encoded, picture, stacks
from tests.support.small import REPOSITORY, config, folder

CPU = torch.device("cpu")
META_OF_NONE = {"name": "", "images": 0, "shape": [0, 16, 16, 3], "listed": [], "unreadable": []}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    made: Path = folder(tmp_path / "images")
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DecodedCache:
    monkeypatch.setattr(module, "SMALL", 0)
    return DecodedCache(tmp_path / "cache", limit=10**9)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every source that is decoded."""
    calls: list[int] = []
    real = images_module.decode

    def counting(source, transform, **options):
        calls.append(len(source))
        return real(source, transform, **options)

    monkeypatch.setattr(module, "decode", counting)
    return calls


def test_files_of_several_pictures_are_counted(images: Path, cache: DecodedCache, tmp_path: Path) -> None:
    """In memory, newly kept, found again, and streamed."""
    source = open_source(stacks(images))
    expected = Several(3, ("cat/a.gif", "cat/b.tif", "dog/c.png"))
    assert load_canvases(source, 16).several == expected
    assert load_canvases(source, 16, cache=cache).several == expected
    assert load_canvases(source, 16, cache=cache).several == expected
    (entry,) = cache.root.glob("*/meta.json")
    meta = json.loads(entry.read_text())
    entry.write_text(json.dumps({**meta, "several": ["many"]}))
    assert cache.entries() == []  # damaged
    del meta["several"]  # of an earlier version
    entry.write_text(json.dumps(meta))
    assert load_canvases(source, 16, cache=cache).several == Several()
    streamed = StreamedImages(source, 16)
    assert streamed.several == Several()
    for rows in (torch.arange(12), torch.arange(12, 23), torch.arange(12)):
        streamed.read(rows)
    streamed.close()
    assert streamed.several == expected


def same(a: ImageTensor, b: ImageTensor) -> bool:
    equal = torch.equal(a.pixels, b.pixels) and torch.equal(a.aspect, b.aspect)
    return equal and a.indices.tolist() == b.indices.tolist() and a.skipped == b.skipped


def denied(*_: object) -> None:
    """What removing somebody else's entry comes to."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


# ------------------------------------------------------------------------------------------------------ cache


def test_images_are_decoded_once_and_the_cache_gives_the_same(images: Path, cache: DecodedCache, decoded: list[int]):
    (images / "cat" / "broken.png").write_bytes(bad_images()["half.png"])
    plain = load_canvases(open_source(images), 16)
    first, second = (load_canvases(open_source(images), 16, cache=cache) for _ in range(2))
    assert same(plain, first)
    assert same(plain, second)
    assert [item.path for item in second.skipped] == ["cat/broken.png"]
    assert len(decoded) == 2  # once without the cache, once with it
    load_canvases(open_source(images), 8, cache=cache)
    assert len(decoded) == 3
    assert len(cache.entries()) == 2


def test_a_part_of_a_source_is_cached_too(images: Path, cache: DecodedCache, decoded: list[int]):
    parts = [load_canvases(open_source(images).subset(rows), 16, cache=cache) for rows in ([0, 3], [1, 3], [0, 3])]
    assert len(decoded) == 2
    assert same(parts[0], parts[2])
    assert not torch.equal(parts[0].pixels, parts[1].pixels)
    (images / "cat" / "000.png").write_bytes((images / "dog" / "000.png").read_bytes())
    assert not same(load_canvases(open_source(images).subset([0, 3]), 16, cache=cache), parts[0])


def test_a_changed_image_is_decoded_again(images: Path, cache: DecodedCache):
    before = load_canvases(open_source(images), 16, cache=cache)
    path = images / "cat" / "000.png"
    facts = path.stat()
    path.write_bytes((images / "dog" / "000.png").read_bytes())
    after = load_canvases(open_source(images), 16, cache=cache)
    assert not torch.equal(before.pixels[0], after.pixels[0])
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # the same size, and the same time, but among the files that are looked into
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    load_canvases(open_source(images), 16, cache=cache)
    assert len(cache.entries()) == 3


def test_a_time_far_in_the_future_is_a_time(images: Path):
    stamps = set()
    for seconds in (10_413_792_000, 10_413_792_001):  # in the year 2300
        os.utime(images / "cat" / "000.png", (seconds, seconds))
        source = open_source(images)
        assert source.stamp is not None
        stamps.add(source.stamp())
    assert len(stamps) == 2


def test_a_changed_image_of_a_list_is_decoded_again(images: Path, cache: DecodedCache, tmp_path: Path):
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sorted(images.rglob("*.png"))) + "gone.png\n")
    os.mkfifo(tmp_path / "pipe.png")  # which nobody waits for
    with (tmp_path / "list.txt").open("a") as file:
        file.write(f"{tmp_path}/pipe.png\n")
    source = open_source(tmp_path / "list.txt")
    before = load_canvases(source, 16, cache=cache)
    (images / "cat" / "000.png").write_bytes((images / "dog" / "000.png").read_bytes())
    after = load_canvases(open_source(tmp_path / "list.txt"), 16, cache=cache)
    assert torch.equal(after.pixels[0], after.pixels[10])
    assert not torch.equal(after.pixels[0], before.pixels[0])
    again = open_source(tmp_path / "list.txt")
    assert source.listing is not None
    assert again.listing is not None
    assert source.listing() == again.listing()  # which an extraction goes on with


def test_a_copy_of_the_images_shares_the_entry(images: Path, cache: DecodedCache, decoded: list[int], tmp_path: Path):
    load_canvases(open_source(images), 16, cache=cache)
    images.rename(tmp_path / "elsewhere")
    load_canvases(open_source(tmp_path / "elsewhere"), 16, cache=cache)
    assert len(decoded) == 1


def test_what_could_not_be_read_and_now_can_is_read(images: Path, cache: DecodedCache, monkeypatch: pytest.MonkeyPatch):
    from byol.images import folder
    from byol.images.picture.read import read_image
    from byol.images.surroundings import UnreadableImage

    def refuse(path: bytes, anchors: object, least_side: int) -> object:
        if b"001" in path:
            raise UnreadableImage("Permission denied")
        return read_image(path, least_side=least_side)

    monkeypatch.setattr(folder, "read_image", refuse)
    assert len(load_canvases(open_source(images), 16, cache=cache)) == 18
    monkeypatch.setattr(folder, "read_image", read_image)
    assert len(load_canvases(open_source(images), 16, cache=cache)) == 20
    assert len(cache.entries()) == 1


def test_a_readable_image_beside_one_of_the_same_name_costs_no_decoding(
    images: Path, cache: DecodedCache, decoded: list[int], tmp_path: Path
):
    with tarfile.open(tmp_path / "joined.tar", "w") as tar:
        broken = tarfile.TarInfo("000.png")
        broken.size = 6
        tar.addfile(broken, io.BytesIO(b"broken"))
        tar.add(images / "cat" / "000.png", "000.png")
    for _ in range(2):
        assert load_canvases(open_source(tmp_path / "joined.tar"), 16, cache=cache).indices.tolist() == [1]
    assert len(decoded) == 1


@pytest.mark.parametrize(
    ("name", "length"), [("pixels.npy", 100), ("aspect.npy", 100), ("indices.npy", 100), (META, 100), ("pixels.npy", 0)]
)
def test_a_damaged_entry_is_made_again(images: Path, cache: DecodedCache, name: str, length: int):
    expected = load_canvases(open_source(images), 16, cache=cache)
    (entry,) = cache.entries()
    expected = ImageTensor(expected.pixels.clone(), expected.aspect, expected.indices, expected.skipped)
    (entry.path / name).write_bytes((entry.path / name).read_bytes()[:length])
    assert same(expected, load_canvases(open_source(images), 16, cache=cache))


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux lists what is mapped")
def test_an_entry_may_be_larger_than_memory(images: Path, cache: DecodedCache):
    """Of a private mapping that may be written to, the kernel demands its size as memory."""
    opened = [load_canvases(open_source(images), 16, cache=cache) for _ in range(2)]
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[1] for line in lines if str(cache.root) in line and line.endswith("pixels.npy")]
    assert mapped == ["r--s"] * len(opened)


def test_a_damaged_entry_that_cannot_be_removed_is_told_before_the_work(
    images: Path, cache: DecodedCache, decoded: list[int], monkeypatch: pytest.MonkeyPatch
):
    load_canvases(open_source(images), 16, cache=cache)
    (entry,) = cache.entries()
    (entry.path / "pixels.npy").write_bytes(b"damaged")
    monkeypatch.setattr(cache_module, "remove", denied)
    with pytest.warns(UserWarning, match=f"{entry.path} cannot be removed: Permission denied; decoding images anew"):
        assert isinstance(open_images(open_source(images), 16, cache=cache), StreamedImages)
    assert len(decoded) == 1


def test_an_entry_serves_when_others_have_filled_the_disk(
    images: Path, cache: DecodedCache, decoded: list[int], monkeypatch: pytest.MonkeyPatch
):
    expected = load_canvases(open_source(images), 16, cache=cache)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with warnings.catch_warnings(action="error"):
        found = open_images(open_source(images), 16, cache=cache)
    assert isinstance(found, ImageTensor)
    assert same(found, expected)
    with pytest.warns(UserWarning, match=r"images takes 0 MB decoded, \S+ has room for 0 MB .*anew for each batch"):
        assert isinstance(open_images(open_source(images), 24, cache=cache), StreamedImages)
    (images / "cat" / "new.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="has room for 0 MB .*; decoding images for this run only"):
        load_canvases(open_source(images), 16, cache=cache)
    assert len(decoded) == 2


@pytest.mark.parametrize("what", ["mapping", "reading"])
def test_a_fault_of_the_machine_costs_no_entry(
    images: Path, cache: DecodedCache, decoded: list[int], monkeypatch: pytest.MonkeyPatch, what: str
):
    load_canvases(open_source(images), 16, cache=cache)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    failing = "numpy.lib.format.open_memmap" if what == "mapping" else "byol.images.cache.read_meta"
    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.warns(UserWarning, match="Cannot allocate memory; decoding images anew for each batch"):
            assert isinstance(open_images(open_source(images), 16, cache=cache), StreamedImages)
    assert isinstance(open_images(open_source(images), 16, cache=cache), ImageTensor)
    assert len(decoded) == 1


def test_the_cache_stays_within_its_size_and_drops_what_was_used_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = DecodedCache(tmp_path, limit=3500)
    for number, name in enumerate("abc"):
        with cache.create(name, 1000) as entry:
            (entry / "pixels.npy").write_bytes(b"x" * 900)
            (entry / META).write_text(json.dumps(META_OF_NONE))
        os.utime(tmp_path / name, (number, number))
    assert cache.find("a")  # used now
    with cache.create("d", 1500) as entry:
        (entry / META).write_text(json.dumps(META_OF_NONE))
    assert {entry.path.name for entry in cache.entries()} == {"a", "c", "d"}
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "remove", denied)
        with pytest.raises(CacheError, match="cannot be removed"), cache.create("e", 3500):
            pass
    assert not cache.has_room(3501)
    assert cache.has_room(3500)
    assert cache.clear() > 0
    assert cache.entries() == []


@pytest.mark.parametrize("streamed", [False, True])
def test_large_jpegs_are_decoded_at_a_scale_that_suits_the_canvas(tmp_path: Path, streamed: bool):
    (tmp_path / "photo.jpg").write_bytes(encoded(Image.fromarray(picture(643, 400)), "JPEG"))
    source = open_source(str(tmp_path))
    assert canvas_side(source, 32) == 40
    if streamed:
        pixels, aspect = StreamedImages(source, 40).read(torch.tensor([0]))
    else:
        images = load_canvases(source, 40)
        pixels, aspect = images.pixels, images.aspect
    reduced = read_image(tmp_path / "photo.jpg", least_side=90)
    assert reduced.size == (161, 100)
    expected = reduced.resize((40, 40), Image.Resampling.BICUBIC, (0, 0, 160.75, 100))
    np.testing.assert_array_equal(pixels[0], expected)
    assert float(aspect[0]) == pytest.approx(643 / 400, rel=1e-6)


def test_an_image_counts_when_it_is_decoded_and_not_with_its_chunk():
    counted, number = threading.Event(), 32 * usable_cores()

    def slow(row: int, least_side: int = 0) -> Image.Image:
        if row % 32 and not counted.wait(60):
            raise AssertionError("nothing is counted before the first chunk ends")
        return Image.new("RGB", (4, 4))

    source = ImageSource("slow", [str(i) for i in range(number)], Labels.none(number), [], slow)
    done: list[int] = []

    def advance(count: int) -> None:
        done.append(count)
        counted.set()

    assert len(load_canvases(source, 4, advance)) == number == sum(done)


def test_a_failure_while_decoding_leaves_nothing(images: Path, cache: DecodedCache):
    def fail(count: int) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        load_canvases(open_source(images), 16, fail, cache)
    assert list(cache.root.iterdir()) == []


def test_what_a_killed_process_left_is_removed(images: Path, cache: DecodedCache):
    script = (
        "import os, sys; from pathlib import Path; from byol.images.cache import DecodedCache\n"
        "with DecodedCache(Path(sys.argv[1]), 10**6).create('k', 10) as folder:\n"
        "    (folder / 'pixels.npy').write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(cache.root)], cwd=REPOSITORY)
    assert killed.returncode == -9
    assert len(list(cache.root.iterdir())) == 2  # and its lock
    load_canvases(open_source(images), 16, cache=cache)
    assert [path.name for path in cache.root.iterdir()] == [cache.entries()[0].path.name]


def test_two_processes_may_write_the_same_entry(tmp_path: Path):
    cache = DecodedCache(tmp_path, limit=1000)
    with cache.create("k", 10) as first:
        (first / META).write_text(json.dumps(META_OF_NONE | {"name": "first"}))
        os.rename(first, tmp_path / "aside")  # as if it were another process's
        with cache.create("k", 10) as second:
            (second / META).write_text(json.dumps(META_OF_NONE | {"name": "second"}))
        os.rename(tmp_path / "aside", first)
    (entry,) = cache.entries()
    assert entry.meta["name"] == "second"


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BYOL_CACHE_GB", "2.5")
    assert size_limit() == 2_500_000_000
    for text in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("BYOL_CACHE_GB", text)
        with pytest.raises(ValueError, match="BYOL_CACHE_GB"):
            size_limit()


def test_the_command_shows_and_clears(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setenv("BYOL_HOME", str(tmp_path / "home"))
    load_canvases(open_source(images), 16, cache=DecodedCache())
    shown = CliRunner().invoke(cache_command, [])
    assert "images: 20 images at 16 px" in shown.output
    listed = json.loads(CliRunner().invoke(cache_command, ["--json"]).output)
    assert [entry["images"] for entry in listed["entries"]] == [20]
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "remove", denied)
        with pytest.raises(CacheError, match=r"^0 MB freed; \S+ cannot be removed: Permission denied; remove it as "):
            CliRunner().invoke(cache_command, ["clear"], catch_exceptions=False)
    assert CliRunner().invoke(cache_command, ["clear"]).exit_code == 0
    assert DecodedCache().entries() == []


# -------------------------------------------------------------------------------------------- order and feeds


def test_an_order_by_blocks_visits_all_rows_a_window_at_a_time():
    starts = np.arange(0, 1000, 10)
    order = Order(seed=0, images=1000, batch_size=10, blocks=starts)
    rows = torch.cat([order.rows(step) for step in range(100)])
    assert sorted(rows.tolist()) == list(range(1000))
    windows = [set((rows[i : i + 160] // 10).tolist()) for i in range(0, 960, 160)]
    assert all(len(window) == 16 for window in windows)  # 16 blocks are open at a time
    assert rows[:160].tolist() != sorted(rows[:160].tolist())
    assert torch.cat([order.rows(step) for step in range(100, 200)]).tolist() != rows.tolist()


def test_steps_can_be_asked_for_in_any_order():
    forwards, backwards = (Order(seed=3, images=25, batch_size=4) for _ in range(2))
    expected = [forwards.rows(step).tolist() for step in range(20)]
    assert [backwards.rows(step).tolist() for step in reversed(range(20))] == expected[::-1]


@pytest.mark.parametrize("start", [0, 5])
def test_resident_fetched_and_streamed_batches_are_the_same(images: Path, start: int):
    source = open_source(images)
    tensor, streamed = load_canvases(source, 16), StreamedImages(source, 16)
    order = Order(seed=0, images=20, batch_size=8)
    feeds = [
        open_feed(tensor, order.rows, CPU, last=6),
        FetchedFeed(lambda rows: (tensor.pixels[rows], tensor.aspect[rows]), order.rows, CPU, last=6),
        open_feed(streamed, order.rows, CPU, last=6),
    ]
    assert isinstance(feeds[0], ResidentFeed)
    for step in range(start, 7):  # also past the last step
        (pixels, aspect), *others = (feed.batch(step) for feed in feeds)
        assert pixels.shape == (8, 16, 16, 3)
        for other in others:
            assert torch.equal(pixels, other[0])
            assert torch.equal(aspect, other[1])
    for feed in feeds:
        feed.close()


def test_batches_are_read_ahead_but_not_past_the_end():
    asked: list[list[int]] = []

    def read(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(rows.tolist())
        return rows, rows

    order = Order(seed=0, images=6, batch_size=1)
    feed = FetchedFeed(read, order.rows, CPU, last=6)
    feed.batch(0)
    feed._thread.submit(lambda: None).result()  # all that was asked for is read
    assert asked == [order.rows(step).tolist() for step in range(4)]
    for step in range(1, 6):
        feed.batch(step)
    feed.close()
    assert asked == [order.rows(step).tolist() for step in range(6)]


def test_streaming_replaces_unreadable_images_and_reports_them(images: Path):
    for name, content in bad_images().items():
        (images / name).write_bytes(content)
    source = open_source(images)
    streamed = StreamedImages(source, 16)
    assert streamed.skipped == []
    pixels, _ = streamed.read(torch.arange(len(source)))
    assert sorted(item.path for item in streamed.skipped) == sorted(bad_images())
    good = load_canvases(source, 16)
    for row in range(len(source)):
        assert any(torch.equal(pixels[row], image) for image in good.pixels)
    for row, index in enumerate(good.indices):
        assert torch.equal(pixels[index], good.pixels[row])


def test_a_batch_without_a_readable_image_takes_the_next_one_of_the_source(images: Path, monkeypatch):
    """Else a run with few images a process would end, and come to the same batch when it is resumed."""
    for name in ("cat/008.png", "cat/009.png", "dog/009.png"):
        (images / name).write_bytes(b"no image")
    source = open_source(images)
    good = load_canvases(source, 16)
    place = {name: i for i, name in enumerate(source.ids)}

    def stands_for(*names: str) -> list[str]:
        pixels, _ = StreamedImages(source, 16).read(torch.tensor([place[name] for name in names]))
        return [
            source.ids[int(good.indices[row])]
            for canvas in pixels
            for row in range(len(good))
            if torch.equal(canvas, good.pixels[row])
        ]

    assert stands_for("cat/008.png", "cat/009.png") == ["dog/000.png"] * 2
    assert stands_for("dog/009.png") == ["cat/000.png"]  # from the start again
    assert stands_for("cat/009.png", "cat/003.png") == ["cat/003.png"] * 2  # of the batch first
    monkeypatch.setattr(intake, "FURTHER", 1)
    assert stands_for("cat/009.png") == ["dog/000.png"]
    with pytest.raises(SourceUnavailable, match=r"none of 2 images can be read \(cat/008.png: .*finished work is kept"):
        stands_for("cat/008.png")


def test_sources_larger_than_the_cache_are_streamed(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SMALL", 0)
    source = open_source(images)
    with warnings.catch_warnings(action="error"):  # who allows no cache needs not be told
        assert isinstance(open_images(source, 16, cache=DecodedCache(tmp_path / "none", limit=0)), StreamedImages)
    assert isinstance(open_images(source, 16, cache=DecodedCache(tmp_path / "some", limit=10**9)), ImageTensor)


def test_a_streamed_run_learns_the_same_as_a_resident_one(images: Path):
    source = open_source(images)
    weights = []
    stream = StreamedImages(source, 16)
    for opened in (load_canvases(source, 16), stream):
        with Trainer(config(), opened) as trainer:
            for step in range(2):
                trainer.step(step)
        weights.append(torch.cat([p.flatten() for p in trainer.parameters.values()]))
    assert torch.equal(*weights)
    with pytest.raises(RuntimeError, match="after shutdown"):  # the trainer has stopped the threads of the stream
        stream.read(torch.arange(1))
