"""Encoder: features against float64 NumPy, rows in order whatever is skipped, every kind of input."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from byol.bundle.folder import Bundle
from byol.bundle.schema import BundleError
from byol.images.columns import Labels
from byol.images.decode import Preprocess
from byol.images.open import open_source
from byol.images.picture.read import read_image
from byol.images.source import ImageSource, Skipped
from byol.serve import Encoder
from byol.serve.pipeline import BATCH_SIZES
from tests.support.inputs.odd_images import bad_images, encoded, odd_images, picture, write_files
from tests.support.tiny import assert_same_features, tiny_reference, write_images, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("encoder") / "bundle")


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> Encoder:
    return Encoder(bundle, device="cpu", batch_size=4)


def expected_features(bundle: Path, images: list[np.ndarray]) -> np.ndarray:
    transform = Preprocess.for_size(16)
    return tiny_reference(bundle, np.stack([transform(Image.fromarray(image)) for image in images]))


def test_attributes(bundle: Path, encoder: Encoder) -> None:
    assert (encoder.feature_dim, encoder.image_size, encoder.device, encoder.batch_size) == (8, 16, "cpu", 4)
    assert encoder.digest == Bundle.open(bundle).digest
    assert encoder.manifest.architecture.name == "tiny"
    assert Encoder(bundle, "cpu").batch_size == BATCH_SIZES["cpu"]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_arrays_of_any_size_against_numpy(bundle: Path, encoder: Encoder, count: int) -> None:
    images = [picture(16 + 5 * i, 40 - 3 * i, seed=i) for i in range(count)]
    features = encoder(images)
    assert features.shape == (count, 8)
    assert features.dtype == np.float32
    assert_same_features(features, expected_features(bundle, images))


def test_paths_pillow_images_and_arrays_agree(tmp_path: Path, encoder: Encoder) -> None:
    image = picture(30, 25)
    Image.fromarray(image).save(tmp_path / "a.png")
    lazy = Image.open(tmp_path / "a.png")
    features = encoder([image, Image.fromarray(image), lazy, tmp_path / "a.png", str(tmp_path / "a.png")])
    np.testing.assert_array_equal(features[1:4], np.broadcast_to(features[0], (3, 8)))
    np.testing.assert_allclose(features[4], features[0], rtol=1e-5)  # alone in its batch: other kernels


def test_pillow_images_are_turned_and_converted_like_files(tmp_path: Path, encoder: Encoder) -> None:
    write_files(tmp_path, odd_images())
    for name in odd_images():
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(encoder([image]), encoder([tmp_path / name]))


@pytest.mark.parametrize("margin", [2.25, None])
def test_large_jpegs_are_decoded_as_the_bundle_says(tmp_path: Path, margin: float | None) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    replace(manifest, preprocess=replace(manifest.preprocess, jpeg_margin=margin)).write(bundle)
    (tmp_path / "photo.jpg").write_bytes(encoded(Image.fromarray(picture(300, 200)), "JPEG"))
    image = read_image(tmp_path / "photo.jpg", least_side=36 if margin else 0)
    assert image.size == ((75, 50) if margin else (300, 200))
    expected = tiny_reference(bundle, Preprocess.for_size(16)(image)[None])
    encoder = Encoder(bundle, "cpu")
    assert_same_features(encoder([tmp_path / "photo.jpg"]), expected)
    assert_same_features(encoder([tmp_path / "photo.jpg"] * 2)[1:], expected)


def test_pillow_images_are_left_as_they_were(encoder: Encoder) -> None:
    turned, deep = Image.fromarray(picture(30, 20)), Image.new("I;16", (20, 30), 40_000)
    turned.getexif()[0x0112] = 6
    first = encoder([turned, deep])
    assert (turned.size, turned.getexif()[0x0112], deep.getpixel((3, 3))) == ((30, 20), 6, 40_000)
    np.testing.assert_array_equal(encoder([turned, deep]), first)


def test_stacked_array_and_empty_list(bundle: Path, encoder: Encoder) -> None:
    images = np.stack([picture(20, 20, seed=i) for i in range(6)])
    assert_same_features(encoder(images), expected_features(bundle, list(images)))
    assert encoder([]).shape == (0, 8)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"image 1: expected a uint8 array \(H, W, 3\), found float32"),
        (np.zeros((4, 4), np.uint8), r"found uint8 \(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"found uint8 \(0, 4, 3\)"),
        ("no-such-file.png", "no-such-file.png: No such file"),
        (Image.new("F", (3, 3)), "image 1: floating-point pixels"),
        (None, "image 1: expected a path, a Pillow image or a uint8 array, found NoneType"),
    ],
)
def test_bad_item_is_named(encoder: Encoder, item: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder([picture(), item])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=message.replace("image 1", "image 0")):
        encoder([item])  # type: ignore[list-item]


def test_one_image_instead_of_a_list_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="expected a list of images, found one str"):
        encoder("a.png")
    with pytest.raises(ValueError, match="put it in a list"):
        encoder(Image.new("RGB", (2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image 0: expected a uint8 array"):
        encoder(picture())  # (H, W, 3) would be taken for H images
    with pytest.raises(ValueError, match="images is 7; expected a list of paths, Pillow images or uint8 arrays"):
        encoder(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images is None; expected a list"):
        next(encoder.stream(None))  # type: ignore[arg-type]


def test_half_loaded_pillow_image_is_named(tmp_path: Path, encoder: Encoder) -> None:
    write_files(tmp_path, bad_images())
    with Image.open(tmp_path / "truncated.jpg") as image, pytest.raises(ValueError, match=r"image 0: .*truncated"):
        encoder([image])


def test_batches_skip_bad_images_and_keep_rows_in_place(tmp_path: Path, bundle: Path, encoder: Encoder) -> None:
    good = {f"{i:02}.png": picture(20, 18, seed=i) for i in range(9)}
    for name, image in good.items():
        Image.fromarray(image).save(tmp_path / name)
    for i, content in enumerate(bad_images().values()):
        (tmp_path / f"{i:02}x.png").write_bytes(content)
    source = open_source(tmp_path)
    batches = list(encoder.batches(source, threads=2))
    assert [len(batch.indices) for batch in batches] == [4, 4, 1]
    indices = [i for batch in batches for i in batch.indices]
    assert [source.ids[i] for i in indices] == sorted(good)
    assert_same_features(
        np.concatenate([batch.outputs for batch in batches]), expected_features(bundle, list(good.values()))
    )
    skipped = [item.path for batch in batches for item in batch.skipped]
    assert skipped == [f"{i:02}x.png" for i in range(len(bad_images()))]


def test_only_bad_images_give_one_batch_without_rows(tmp_path: Path, encoder: Encoder) -> None:
    write_files(tmp_path, bad_images())
    (batch,) = encoder.batches(open_source(tmp_path))
    assert (batch.indices, batch.outputs.shape) == ([], (0, 8))
    assert [item.path for item in batch.skipped] == sorted(bad_images())


def test_a_defect_is_not_taken_for_a_bad_image(encoder: Encoder) -> None:
    def refuse(i: int, least_side: int = 0) -> Image.Image:
        raise ValueError("defect")

    broken = ImageSource("test", ["a"], Labels.none(1), [], refuse)
    with pytest.raises(ValueError, match="defect"):
        list(encoder.batches(broken))


def test_stream_yields_ids_and_logs_what_it_leaves_out(
    tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, {"cat": 5})
    (tmp_path / "cat" / "bad.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        parts = list(encoder.stream(tmp_path))
    assert [ids for ids, _ in parts] == [[f"cat/00{i}.png" for i in range(4)], ["cat/004.png"]]
    assert [features.shape for _, features in parts] == [(4, 8), (1, 8)]
    assert [record.getMessage() for record in caplog.records] == [
        "skipped cat/bad.png: not an image, or a format that is not supported"
    ]
    np.testing.assert_array_equal(
        np.concatenate([f for _, f in parts]),
        np.concatenate([f for _, f in encoder.stream([tmp_path / f"cat/00{i}.png" for i in range(5)])]),
    )


def test_listing_problems_are_logged_too(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    source = ImageSource(
        "s", ["a"], Labels.none(1), [Skipped("b", "gone")], lambda i, least_side=0: Image.new("RGB", (9, 9))
    )
    assert len(list(encoder.stream(source))) == 1
    assert caplog.records[0].getMessage() == "skipped b: gone"


def test_one_image_starts_no_thread(bundle: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    image = picture(30, 25)
    assert_same_features(encoder([image]), expected_features(bundle, [image]))
    assert started == []


@pytest.mark.parametrize(("device", "rows"), [("cpu", [1, 2, 3, 5, 6, 6, 1]), ("cuda", [1, 2, 4, 6, 6, 6, 1])])
def test_one_image_does_not_cost_a_whole_batch(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, device: str, rows: list[int]
) -> None:
    """What each device does, here on the CPU: CUDA sees few shapes, and padding does not reach the result."""
    encoder = Encoder(bundle, "cpu", batch_size=6)
    calls = [np.stack([picture(16, 16, seed=i) for i in range(count)]) for count in (1, 2, 3, 5, 6, 7)]
    expected = [encoder(images) for images in calls]
    shapes: list[tuple[int, ...]] = []
    run = encoder.session.run

    def spy(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        shapes.append(feeds["images"].shape)
        return run(feeds)

    monkeypatch.setattr(encoder, "device", device)
    monkeypatch.setattr(encoder.session, "run", spy)
    for images, features in zip(calls, expected, strict=True):
        np.testing.assert_allclose(encoder(images), features, rtol=1e-5)
    assert shapes == [(count, 16, 16, 3) for count in rows]


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from tests.support.tiny import tiny_manifest, tiny_model

    bundle = write_tiny_bundle(tmp_path / "bundle")
    weight = np.full((8, 3, 3, 3), np.nan, np.float32)
    (bundle / "encoder.onnx").write_bytes(tiny_model(weight, np.zeros(8, np.float32), 16).SerializeToString())
    tiny_manifest(bundle, 16, 8).write(bundle)
    with pytest.raises(ValueError, match=r"features of image 0 are not finite"):
        Encoder(bundle, "cpu")([picture()])


@pytest.mark.parametrize("batch_size", [0, -1, 4097])
def test_impossible_batch_size_is_refused(bundle: Path, batch_size: int) -> None:
    with pytest.raises(ValueError, match="expected a whole number, 1 to 4096"):
        Encoder(bundle, "cpu", batch_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "32"}, "batch_size is '32'; expected a whole number, 1 to 4096"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected a whole number"),
        ({"variant": ["fp32"]}, r"variant is \['fp32'\]; expected auto, fp32"),
        ({"device": ["cpu"]}, r"device is \['cpu'\]; expected one of auto, cpu"),
        ({"bundle": None}, "bundle is None; expected the path of a bundle"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named(bundle: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(**{"bundle": bundle, "device": "cpu", **arguments})


def test_bundle_must_exist(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        Encoder(tmp_path / "nothing")
