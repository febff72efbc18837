"""In-training kNN against NumPy and against serving's; collapse statistics against their definitions."""

import numpy as np
import pytest
import torch

from byol.images.open import open_source
from byol.images.splits import split_halves
from byol.serve import KNNClassifier
from byol.training.model import Observation
from byol.training.monitor import (
    KNNMonitor,
    KNNSets,
    collapse_statistics,
    collapse_warning,
    rankme,
    std_ratio,
    weighted_knn,
)
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


def test_std_ratio_is_one_on_the_sphere_and_zero_when_collapsed():
    spread = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert std_ratio(spread) == pytest.approx(1.0, abs=0.02)
    assert std_ratio(torch.ones(16, 64) * 3) == pytest.approx(0.0, abs=1e-5)
    # Its definition in float64: deviation of normalised outputs against 1 / sqrt(d).
    x = spread[:50].double().numpy() + 1.0
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert std_ratio(spread[:50] + 1.0) == pytest.approx(unit.std(axis=0, ddof=1).mean() * 8, rel=1e-5)


def test_rankme_counts_the_directions_in_use():
    assert rankme(torch.eye(16)) == pytest.approx(16, rel=1e-3)
    one = torch.outer(torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.ones(16))
    assert rankme(one) == pytest.approx(1, abs=0.01)


def observation(projection):
    return Observation(torch.randn(32, 24), projection, projection, projection)


def test_warning_names_collapse_and_only_collapse():
    assert collapse_warning(collapse_statistics(observation(torch.randn(32, 16))), 32) is None
    message = collapse_warning(collapse_statistics(observation(torch.ones(32, 16) + 1e-3 * torch.randn(32, 16))), 32)
    assert message is not None
    assert message.startswith("training is collapsing: all images get nearly the same projection")


def test_a_low_rank_is_no_warning_where_the_batch_is_tiny():
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    seen = Observation(torch.randn(2, 24), pair, pair, pair)  # two centred rows have rank 1, whatever they are
    statistics = collapse_statistics(seen)
    assert statistics["rankme"] < 1.5
    assert collapse_warning(statistics, 2) is None
    message = collapse_warning(statistics, 8)
    assert message is not None
    assert "a single direction" in message


def test_halves_keep_the_class_proportions():
    labels = ["a"] * 6 + ["b"] * 4 + ["c"]
    first, second = split_halves(labels)
    assert [labels[i] for i in first] == ["a", "a", "a", "b", "b", "c"]
    assert [labels[i] for i in second] == ["a", "a", "a", "b", "b"]


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
    assert monitor.measure(colour_features) > 0.8


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


def test_without_training_labels_half_of_the_validation_images_are_the_bank(tmp_path):
    training = open_source(folder(tmp_path / "train", classes=("photos",), per_class=12))
    validation = open_source(folder(tmp_path / "val", per_class=6))
    monitor = measured(config(knn_k=200), training, validation)  # k above the bank means the whole bank
    assert (len(monitor.bank), len(monitor.queries)) == (6, 6)
    assert 0 <= monitor.measure(colour_features) <= 1
    told = KNNSets.choose(config(), training, validation).described
    assert told == (
        "6 of 12 validation images, bank: 6 of the others, as the training images have none of class cat and 1 more"
    )
    assert KNNSets.choose(config(), open_source(tmp_path / "train" / "photos"), validation).described == (
        "6 of 12 validation images, bank: 6 of the others, as the training images have no labels"
    )


def test_a_stray_image_costs_no_other_its_label(tmp_path):
    data = folder(tmp_path / "train", per_class=12)
    (data / "cat" / "000.png").rename(data / "montage.png")
    validation = open_source(folder(tmp_path / "val", per_class=5, start=5000))
    sets = KNNSets.choose(config(), open_source(data), validation)
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
    for name in ("cat/001.png", "dog/002.png"):  # every second one is in the bank
        (data / name).write_bytes(b"no picture")
    (data / "dog" / "photo.heic").touch()
    monitor = measured(config(), training, open_source(data))
    assert sorted(item.path for item in monitor.skipped) == ["cat/001.png", "dog/002.png", "dog/photo.heic"]
    assert (len(monitor.bank), len(monitor.queries)) == (5, 5)
