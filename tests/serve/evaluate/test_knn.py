"""Weighted kNN against float64 NumPy and scikit-learn, at its edges, and its ties."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from byol.serve import KNNClassifier
from byol.serve.evaluate import knn
from byol.serve.evaluate.scores import LAST, Scores


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    x = x + np.random.default_rng(0).normal(0, 0.01, x.shape)  # no two distances are equal
    return x[:1000], y[:1000], x[1000:], y[1000:]


def shares(x: np.ndarray, y: np.ndarray, queries: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """The definition, one query at a time, in float64."""

    def unit(rows: np.ndarray) -> np.ndarray:
        normalised: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return normalised

    classes = np.unique(y)
    result = np.zeros((len(queries), len(classes)))
    for row, similarity in zip(result, unit(queries) @ unit(x).T, strict=True):
        for neighbour in sorted(range(len(x)), key=lambda i: -similarity[i])[:k]:
            row[np.searchsorted(classes, y[neighbour])] += np.exp(similarity[neighbour] / temperature)
    normalised: np.ndarray = result / result.sum(1, keepdims=True)
    return normalised


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.1), (5, 1.0)])
def test_shares_against_numpy(digits: tuple[np.ndarray, ...], k: int, temperature: float) -> None:
    x, y, queries, _ = digits
    found = KNNClassifier(k, temperature, "cpu").fit(x, y).predict_proba(queries[:100])
    # float32 similarities are right to 1e-7, so exp(s / 0.07) is to 2e-6
    np.testing.assert_allclose(found, shares(x, y, queries[:100], k, temperature), atol=1e-5)


@pytest.mark.parametrize("k", [1, 20])
def test_predictions_against_scikit_learn(digits: tuple[np.ndarray, ...], k: int) -> None:
    x, y, queries, truth = digits

    def weight(distance: np.ndarray) -> np.ndarray:
        votes: np.ndarray = np.exp((1 - distance) / 0.07)
        return votes

    reference = KNeighborsClassifier(k, metric="cosine", weights=weight, algorithm="brute").fit(x, y)
    ours = KNNClassifier(k, device="cpu").fit(x, y)
    assert (ours.predict(queries) == reference.predict(queries)).all()
    assert ours.score(queries, truth) == pytest.approx(reference.score(queries, truth))
    np.testing.assert_array_equal(ours.kneighbors(queries)[1], reference.kneighbors(queries, return_distance=False))


def test_chunks_do_not_change_the_result(digits: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, queries, _ = digits
    whole = KNNClassifier(20, device="cpu").fit(x, y).predict_proba(queries)
    monkeypatch.setattr(knn, "MAX_QUERIES", 7)
    np.testing.assert_allclose(KNNClassifier(20, device="cpu").fit(x, y).predict_proba(queries), whole, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 64, 999])
def test_pieces_of_the_bank_do_not_change_the_neighbours(
    digits: tuple[np.ndarray, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a piece has fewer rows than k, and where rows are equal across pieces."""
    x, y, queries, _ = digits
    x = np.concatenate([x[:500], x[:500]])
    expected = KNNClassifier(30, device="cpu").fit(x, y).kneighbors(queries[:50])
    monkeypatch.setattr(knn, "BANK_ROWS", rows)
    similarity, neighbours = KNNClassifier(30, device="cpu").fit(x, y).kneighbors(queries[:50])
    np.testing.assert_allclose(similarity, expected[0], atol=1e-6)
    # Equal rows may round differently from one size of matrix to another: compare them as the pairs they are.
    np.testing.assert_array_equal(np.sort(neighbours % 500), np.sort(expected[1] % 500))


@pytest.mark.parametrize("rows", [7, 1 << 20])
def test_a_bank_of_unit_rows_is_searched_as_it_is(
    digits: tuple[np.ndarray, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "BANK_ROWS", rows)
    bank, queries = digits[0][:100].astype(np.float32), digits[2][:9].astype(np.float32)
    usual = knn.Neighbours(bank, 5, "cpu")(queries)
    unit, asked = knn.unit_rows(bank), knn.unit_rows(queries)
    monkeypatch.setattr(knn, "unit_rows", lambda x: x if x is asked else pytest.fail("normalised again"))
    found = knn.Neighbours(unit, 5, "cpu", is_unit=True)(asked)
    np.testing.assert_array_equal(found[1], usual[1])
    np.testing.assert_allclose(found[0], usual[0], atol=1e-6)


def test_sweep_is_each_classifier_of_its_own(digits: tuple[np.ndarray, ...]) -> None:
    x, y, queries, truth = digits
    results = KNNClassifier(200, device="cpu").fit(x, y).sweep(queries, truth, (1, 20, 200), (0.07, 0.5))
    assert [(k, t) for k, t, _, _ in results] == [(k, t) for k in (1, 20, 200) for t in (0.07, 0.5)]
    for k, temperature, top1, top5 in results:
        alone = KNNClassifier(k, temperature, "cpu").fit(x, y)
        assert (top1, top5) == tuple(alone.top_k_scores(queries, truth))


@pytest.mark.parametrize("rows", [400, 7])
def test_leave_one_out_is_knn_without_the_query_itself(
    digits: tuple[np.ndarray, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one classifier for each query, and a bank of many twins, of which a query may not find itself."""
    monkeypatch.setattr(knn, "BANK_ROWS", rows)
    x, y = digits[0][:60], digits[1][:60]
    found = KNNClassifier(6, 0.07, "cpu").fit(x, y).sweep(x, y, [1, 5, 20], [0.07], leave_one_out=True)
    rest = [np.delete(np.arange(60), i) for i in range(60)]
    for k, (used, _, top1, _) in zip((1, 5, 5), found, strict=True):
        alone = [KNNClassifier(k, 0.07, "cpu").fit(x[r], y[r]).predict(x[i : i + 1])[0] for i, r in enumerate(rest)]
        assert used == k
        left_out = KNNClassifier(k + 1, 0.07, "cpu").fit(x, y).predict_left_out(x[::-7], np.arange(60)[::-7])
        assert left_out.tolist() == alone[::-7]
        assert top1 == pytest.approx(np.mean(np.array(alone) == y))
    twins, labels = np.ones((30, 4), np.float32), np.arange(30) % 2
    ((_, _, top1, _),) = KNNClassifier(4, 0.07, "cpu").fit(twins, labels).sweep(twins, labels, [3], [0.07], True)
    assert top1 == pytest.approx(13 / 30)  # the first three others of 0 and 1 in turn: right from the fifth 0 on


def test_bank_smaller_than_k_is_used_whole_and_said_so() -> None:
    x, y = np.eye(3), ["a", "b", "b"]
    with pytest.warns(UserWarning, match="k is 20, but the bank has 3 samples"):
        classifier = KNNClassifier(20, device="cpu").fit(x, y)
    assert (classifier.k, classifier.k_) == (20, 3)
    np.testing.assert_allclose(classifier.predict_proba(x[:1]), shares(x, np.array(y), x[:1], 3, 0.07), atol=1e-6)


def test_one_query_and_labels_of_any_kind() -> None:
    x = np.array([[1.0, 0], [0.9, 0.1], [0, 1]])
    kinds: list[list[Any]] = [["cat", "cat", "dog"], [7, 7, 3], [True, True, False]]
    for labels in kinds:
        classifier = KNNClassifier(2, device="cpu").fit(x, labels)
        assert classifier.predict([[1.0, 0.05]]).tolist() == labels[:1]
        assert classifier.classes_.tolist() == sorted(set(labels))
        assert classifier.score([[1.0, 0.05]], labels[:1]) == 1.0


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_do_not_overflow(digits: tuple[np.ndarray, ...], temperature: float) -> None:
    x, y, queries, _ = digits
    classifier = KNNClassifier(20, temperature, "cpu").fit(x, y)
    found = classifier.predict_proba(queries)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1)
    if temperature < 1:  # only the nearest counts
        assert (classifier.predict(queries) == y[classifier.kneighbors(queries)[1][:, 0]]).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_lengths_do_not_matter(digits: tuple[np.ndarray, ...], scale: float) -> None:
    x, y, queries, _ = digits
    expected = KNNClassifier(20, device="cpu").fit(x, y).predict_proba(queries)
    found = KNNClassifier(20, device="cpu").fit(x * scale, y).predict_proba(queries * scale)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_zero_vectors_have_similarity_zero() -> None:
    x = np.array([[0.0, 0], [1, 0], [-1, 0.0]])
    similarity, neighbours = KNNClassifier(3, device="cpu").fit(x, [0, 1, 2]).kneighbors(np.array([[2.0, 0], [0, 0]]))
    np.testing.assert_allclose(similarity, [[1, 0, -1], [0, 0, 0]], atol=1e-7)
    assert neighbours.tolist() == [[1, 0, 2], [0, 1, 2]]


def test_ties_go_to_the_earlier_neighbour_and_the_first_class() -> None:
    x = np.tile([[3.0, 4.0]], (6, 1))
    classifier = KNNClassifier(4, device="cpu").fit(x, ["b", "a", "b", "a", "a", "a"])
    assert classifier.kneighbors(x[:1])[1].tolist() == [[0, 1, 2, 3]]
    np.testing.assert_allclose(classifier.predict_proba(x[:1]), [[0.5, 0.5]])
    assert classifier.predict(x[:1]).tolist() == ["a"]


def test_top_k_scores(digits: tuple[np.ndarray, ...]) -> None:
    x, y, queries, truth = digits
    classifier = KNNClassifier(20, device="cpu").fit(x, y)
    top1, top5 = classifier.top_k_scores(queries, truth)
    assert top1 == classifier.score(queries, truth) == (classifier.predict(queries) == truth).mean()
    votes = shares(x, y, queries, 20, 0.07)
    hits = [t in [c for c in np.argsort(-v, kind="stable")[:5] if v[c] > 0] for v, t in zip(votes, truth, strict=True)]
    assert top5 == pytest.approx(np.mean(hits))


def test_a_vote_that_vanishes_beside_the_nearest_is_one() -> None:
    x = np.array([[1.0, 0], [0, 1], [-1, 0], [-1, -0.1]])
    classifier = KNNClassifier(3, 1e-3, "cpu").fit(x, ["a", "b", "c", "d"])
    queries, truth = np.array([[1.0, 0.01]] * 4), ["a", "b", "c", "d"]
    assert classifier.top_k_scores(queries, truth) == [0.25, 0.75]  # `c` is not among the three nearest
    assert KNNClassifier(4, 1e-3, "cpu").fit(x, ["a", "b", "c", "d"]).top_k_scores(queries, truth) == [0.25, 1]
    assert classifier.predict_proba(queries)[0].tolist() == pytest.approx([1, 0, 0, 0])


def test_places_by_hand() -> None:
    scores = Scores(np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]), np.arange(3)[None])
    assert scores.best().tolist() == [0, 2]  # the tie goes to class 0
    assert scores.places(np.array([1, 2])).tolist() == [1, 0]
    assert scores.places(np.array([2, 0])).tolist() == [LAST, 2]  # nobody voted for class 2
    assert scores.places(np.array([-1, -1])).tolist() == [LAST, LAST]


def test_ties_between_many_classes_go_to_the_first() -> None:
    values = np.full((1, 100), 0.01)
    values[0, 1::2] += 1e-9
    scores = Scores(np.repeat(values, 100, axis=0), np.arange(100)[None])
    best = np.array([*range(1, 100, 2), *range(0, 100, 2)])
    assert scores.places(best).tolist() == list(range(100))


def dense_votes(similarity: np.ndarray, classes: np.ndarray, count: int, temperature: float) -> np.ndarray:
    """Every class's share (B, C) of the votes, as it was computed before only those with votes were; none vanishes."""
    votes = np.zeros((len(similarity), count))
    exponent = (similarity.astype(np.float64) - similarity[:, :1]) / temperature
    np.add.at(votes, (np.arange(len(votes))[:, None], classes), np.maximum(np.exp(exponent), 2.0**-1022))
    result: np.ndarray = votes / votes.sum(1, keepdims=True)
    return result


def dense_top_k(scores: np.ndarray, truth: np.ndarray, k: int) -> float:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits = (order == truth[:, None]) & (np.take_along_axis(scores, order, 1) > 0)
    return float(hits.any(1).mean())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 9, 40, 300]), st.integers(1, 30), st.sampled_from([1e-3, 0.07, 5]))
def test_votes_of_few_of_many_classes_are_those_of_all(seed: int, count: int, k: int, temperature: float) -> None:
    """Predictions, shares, ties and top-k accuracies; the bank has many equal rows, which tie."""
    random = np.random.default_rng(seed)
    bank = random.integers(-1, 2, (max(60, 2 * count), 3)) + random.choice([0, 1e-3], (max(60, 2 * count), 1))
    labels = np.r_[np.arange(count), random.integers(0, count, len(bank) - count)]
    queries, truth = random.integers(-1, 2, (50, 3)).astype(float), random.integers(0, count + 1, 50)
    classifier = KNNClassifier(k, temperature, "cpu").fit(bank, labels)
    similarity, neighbours = classifier.kneighbors(queries)
    expected = dense_votes(similarity, labels[neighbours], count, temperature)
    np.testing.assert_allclose(classifier.predict_proba(queries), expected, rtol=1e-14)
    np.testing.assert_array_equal(classifier.predict(queries), expected.argmax(1))
    known = np.where(truth < count, truth, -1)
    assert classifier.top_k_scores(queries, truth, (1, 2, 5, 99)) == [
        dense_top_k(expected, known, n) for n in (1, 2, 5, 99)
    ]
    right = expected.argmax(1) == known
    per_class = [right[known == number].mean() for number in np.unique(known)]
    assert classifier.measure(queries, truth)["mean_per_class"] == pytest.approx(np.mean(per_class))


def test_memory_does_not_grow_with_the_classes() -> None:
    """2,000 queries and 3,000 classes: one float64 for each pair would be 48 MB."""
    random = np.random.default_rng(0)
    bank, queries = random.normal(size=(3000, 4)), random.normal(size=(2000, 4))
    classifier = KNNClassifier(5, device="cpu").fit(bank, np.arange(3000))
    tracemalloc.start()
    classifier.top_k_scores(queries, np.zeros(2000, int))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_unknown_test_label_counts_as_wrong(digits: tuple[np.ndarray, ...]) -> None:
    x, y, queries, truth = digits
    classifier = KNNClassifier(20, device="cpu").fit(x, y)
    half = truth.copy()
    half[::2] = 77
    assert classifier.score(queries, half) == pytest.approx(classifier.score(queries[1::2], truth[1::2]) / 2, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "x", "y", "message"),
    [
        ({"k": 0}, np.eye(2), [0, 1], "k is 0; expected a whole number of at least 1"),
        ({"k": "5"}, np.eye(2), [0, 1], "k is '5'; expected a whole number of at least 1"),
        ({"k": None}, np.eye(2), [0, 1], "k is None; expected a whole number"),
        ({"temperature": "0.1"}, np.eye(2), [0, 1], "temperature is '0.1'; expected a positive number"),
        ({"device": ["cpu"]}, np.eye(2), [0, 1], r"device is \['cpu'\]; expected one of auto, cpu"),
        ({"temperature": 0.0}, np.eye(2), [0, 1], "temperature is 0.0; expected a positive"),
        ({"temperature": np.nan}, np.eye(2), [0, 1], "temperature is nan"),
        ({}, np.eye(2), [1, 1], r"one class only \(1\)"),
        ({}, np.eye(2), [0, 1, 1], r"y must have shape \(2,\)"),
        ({}, np.ones(3), [0, 1, 1], r"x must have shape \(N, D\)"),
        ({}, np.ones((0, 3)), [], "at least one row"),
        ({}, np.array([[np.nan], [1]]), [0, 1], "not finite"),
    ],
)
def test_unusable_input_is_refused(options: dict[str, Any], x: np.ndarray, y: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KNNClassifier(**{"device": "cpu", **options}).fit(x, y)


def test_numbers_may_be_numpy_s() -> None:
    """As scikit-learn's grids pass them."""
    numbers: dict[str, Any] = {"k": np.arange(1, 3)[0], "temperature": np.float32(0.5)}
    assert KNNClassifier(**numbers, device="cpu").fit(np.eye(2), [0, 1]).predict(np.eye(2)).tolist() == [0, 1]


@pytest.mark.parametrize("ks", [5, "5", ("1", "5"), None])
def test_ks_that_are_no_numbers_are_named(ks: Any) -> None:
    classifier = KNNClassifier(1, device="cpu").fit(np.eye(2), [0, 1])
    with pytest.raises(ValueError, match=r"ks is .*; expected whole numbers, such as"):
        classifier.top_k_scores(np.eye(2), [0, 1], ks)
    assert classifier.top_k_scores(np.eye(2), [0, 1], np.arange(1, 3)) == [1, 1]  # type: ignore[arg-type]


def test_predict_checks_its_input() -> None:
    with pytest.raises(ValueError, match=r"not fitted; call fit\(x, y\) first"):
        KNNClassifier(1).predict(np.eye(2))
    classifier = KNNClassifier(1, device="cpu").fit(np.eye(2), [0, 1])
    with pytest.raises(ValueError, match="X has 3 features, but KNNClassifier is expecting 2 features as input"):
        classifier.predict(np.eye(3))
    with pytest.raises(ValueError, match=r"y must have shape \(2,\)"):
        classifier.score(np.eye(2), [0])
