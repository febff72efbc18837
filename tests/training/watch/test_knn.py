"""In-training kNN against NumPy and against serving's; which images it rests on."""

import numpy as np
import pytest
import torch

from byol.images.open import open_source
from byol.serve import KNNClassifier
from byol.training.watch.knn import KNNMonitor, KNNSets, weighted_knn
from tests.support.small import config, folder


def clusters(count, seed, classes=4, dim=12):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, dim))
    labels = random.integers(0, classes, count)
    return (centres[labels] + 1.2 * random.normal(size=(count, dim))).astype(np.float32), labels


def numpy_knn(bank, labels, queries, classes, k, temperature):
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    predicted = []
    for query in queries:
        similarity = bank @ query
        nearest = np.argsort(-similarity)[:k]
        votes = np.zeros(classes)
        np.add.at(votes, labels[nearest], np.exp(similarity[nearest] / temperature))
        predicted.append(votes.argmax())
    return np.array(predicted)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.1), (5000, 0.5)])
def test_knn_equals_numpy_and_serving(k, temperature):
    bank, labels = clusters(300, 0)
    queries, _ = clusters(90, 1)
    found = weighted_knn(
        torch.tensor(bank), torch.tensor(labels), torch.tensor(queries), 4, k, temperature, chunk=32
    ).numpy()
    np.testing.assert_array_equal(found, numpy_knn(bank, labels, queries, 4, k, temperature))
    served = KNNClassifier(k=min(k, 300), temperature=temperature, device="cpu").fit(bank, labels).predict(queries)
    np.testing.assert_array_equal(found, served)


def test_left_out_queries_are_not_their_own_neighbours():
    bank, labels = clusters(120, 3)
    own = np.array([0, 3, 4, 50, 119])
    found = weighted_knn(
        torch.tensor(bank), torch.tensor(labels), torch.tensor(bank[own]), 4, 5, 0.07, torch.tensor(own), chunk=2
    ).tolist()
    without = [np.delete(np.arange(120), row) for row in own]
    expected = [
        numpy_knn(bank[rest], labels[rest], bank[row : row + 1], 4, 5, 0.07)[0]
        for row, rest in zip(own, without, strict=True)
    ]
    assert found == expected
    all_but_one = weighted_knn(
        torch.tensor(bank), torch.tensor(labels), torch.tensor(bank), 4, 500, 0.5, torch.arange(120)
    ).tolist()
    without = [np.delete(np.arange(120), row) for row in range(120)]
    assert all_but_one == [
        numpy_knn(bank[rest], labels[rest], bank[row : row + 1], 4, 119, 0.5)[0] for row, rest in enumerate(without)
    ]


def measured(settings, training, validation):
    return KNNMonitor(settings, KNNSets.choose(settings, training, validation))


def colour_features(pixels):
    """Mean colour: tells the tinted classes of `folder` apart."""
    return pixels.float().mean(dim=(1, 2))


def test_labelled_training_images_are_the_bank(tmp_path):
    training = open_source(folder(tmp_path / "train", per_class=12))
    validation = open_source(folder(tmp_path / "val", per_class=5, start=5000))
    monitor = measured(config(knn_k=3, knn_bank=20), training, validation)
    assert len(monitor.bank) == 20
    assert len(monitor.queries) == 10
    found = monitor.measure(colour_features)
    assert found["knn_top1"] > 0.8
    assert (found["knn_bank"], found["knn_queries"], found["knn_classes"]) == (20, 10, 2)


def test_bank_and_queries_are_bounded_and_drawn_the_same_every_time(tmp_path):
    training = open_source(folder(tmp_path / "train", per_class=12))
    validation = open_source(folder(tmp_path / "val", per_class=12, start=5000))
    settings = config(knn_bank=9, knn_queries=7)
    first, again = (measured(settings, training, validation) for _ in range(2))
    assert (len(first.bank), len(first.queries)) == (9, 7)
    assert torch.equal(first.queries.pixels, again.queries.pixels)
    assert set(first.query_labels.tolist()) == {0, 1}
    told = KNNSets.choose(settings, training, validation).described
    assert told == "7 of 24 validation images, bank: 9 of 24 training images"


def test_without_training_labels_each_validation_image_is_compared_with_the_others(tmp_path):
    training = open_source(folder(tmp_path / "train", classes=("photos",), per_class=12))
    validation = open_source(folder(tmp_path / "val", per_class=6))
    monitor = measured(config(knn_k=200, knn_temperature=0.5), training, validation)  # the whole bank votes
    found = monitor.measure(colour_features)
    assert (found["knn_bank"], found["knn_queries"]) == (12, 12)
    x, labels = colour_features(monitor.bank.pixels).numpy(), monitor.bank_labels.numpy()
    rest = [np.delete(np.arange(12), row) for row in range(12)]
    voted = [numpy_knn(x[r], labels[r], x[row : row + 1], 2, 11, 0.5)[0] for row, r in enumerate(rest)]
    assert found["knn_top1"] == pytest.approx(np.mean(np.array(voted) == labels), abs=1e-5)  # as it is rounded
    assert found["knn_top1"] < 0.5  # with itself each would be right
    told = KNNSets.choose(config(knn_queries=9), training, validation).described
    assert told == (
        "9 of 12 validation images, each compared with the others, "
        "as the training images have none of class cat and 1 more"
    )
    assert KNNSets.choose(config(), open_source(tmp_path / "train" / "photos"), validation).described == (
        "12 of 12 validation images, each compared with the others, as the training images have no labels"
    )


def test_the_training_images_themselves_are_not_their_own_bank(tmp_path):
    images = open_source(folder(tmp_path / "all", per_class=12))
    monitor = measured(config(knn_k=1), images, images)
    noise = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    assert monitor.measure(lambda _: noise)["knn_top1"] < 1  # each is its own nearest, which does not count
    other = open_source(folder(tmp_path / "other", per_class=12, start=5000))  # of the same names
    assert "bank" in KNNSets.choose(config(), images, other).described


def test_a_stray_image_costs_no_other_its_label(tmp_path):
    data = folder(tmp_path / "train", per_class=12)
    (data / "cat" / "000.png").rename(data / "montage.png")
    validation = open_source(folder(tmp_path / "val", per_class=5, start=5000))
    sets = KNNSets.choose(config(), open_source(data), validation)
    assert sets.queries is not None
    assert (len(sets.bank), len(sets.queries), len(sets.bank.labels.missing)) == (23, 10, 0)
    assert sets.described == (
        "10 validation images, bank: 23 training images; 1 without a label left out, first montage.png"
    )


def test_unlabelled_validation_images_are_refused(tmp_path):
    training = open_source(folder(tmp_path / "train"))
    with pytest.raises(ValueError, match="images have no label"):
        KNNSets.choose(config(), training, open_source(tmp_path / "train" / "cat"))
    (tmp_path / "train" / "cat" / "000.png").rename(tmp_path / "train" / "montage.png")
    with pytest.raises(ValueError, match=r"1 of 20 images have no label \(first: montage\.png\)"):
        KNNSets.choose(config(), training, open_source(tmp_path / "train"))


def test_unreadable_images_of_both_sets_are_named_once(tmp_path):
    training = open_source(folder(tmp_path / "train", classes=("photos",), per_class=12))
    data = folder(tmp_path / "val", per_class=6)
    for name in ("cat/001.png", "dog/002.png"):
        (data / name).write_bytes(b"no picture")
    (data / "dog" / "photo.heic").touch()
    monitor = measured(config(), training, open_source(data))
    assert sorted(item.path for item in monitor.skipped) == ["cat/001.png", "dog/002.png", "dog/photo.heic"]
    assert (len(monitor.bank), len(monitor.query_labels)) == (10, 10)
