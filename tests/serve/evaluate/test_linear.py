"""Linear probe: gradient against finite differences, solution against scikit-learn, l2 without the test set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from byol.images.splits import holdout
from byol.serve import LinearProbe
from byol.serve.evaluate import linear
from byol.serve.evaluate.objective import Objective, objective_graph
from byol.serve.evaluate.principal_axes import rotate


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread() -> Iterator[None]:
    """On a busy machine the BLAS threads of scikit-learn's fits wait for each other."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order]
    return x[:1000], y[:1000], x[1000:], y[1000:]


def loss_64(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, l2: float) -> float:
    log_p = log_softmax(x.astype(np.float64) @ weight.T + bias, axis=1)
    return float(-log_p[np.arange(len(y)), y].mean() + l2 / 2 * (weight**2).sum())


# ------------------------------------------------------------------------------------------------------ the graph


@pytest.mark.parametrize("l2", [0.0, 1e-3, 2.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_loss_and_gradient_against_float64_finite_differences(classes: int, l2: float) -> None:
    generator = np.random.default_rng(classes)
    x = generator.normal(size=(40, 7)).astype(np.float32)
    y = generator.integers(0, classes, 40)
    objective = Objective(x, y, classes, "cpu")
    parameters = generator.normal(size=classes * 8).astype(np.float32).astype(np.float64)

    def reference(p: np.ndarray) -> float:
        return loss_64(x, y, *objective.split(p), l2)

    loss, gradient = objective(parameters, l2)
    assert loss == pytest.approx(reference(parameters), rel=1e-6)
    steps = 1e-6 * np.eye(len(parameters))
    numeric = [(reference(parameters + step) - reference(parameters - step)) / 2e-6 for step in steps]
    # float32 gradients are right to about 1e-6 of the largest term, central differences to 1e-9
    np.testing.assert_allclose(gradient, numeric, atol=2e-6 * max(1.0, float(np.abs(gradient).max())))


@pytest.mark.parametrize("rows", [1, 7, 39, 100])
def test_pieces_add_up_to_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 7)).astype(np.float32), generator.integers(0, 3, 40)
    parameters = generator.normal(size=3 * 8)
    whole_loss, whole_gradient = Objective(x, y, 3, "cpu")(parameters, 0.1)
    for room in (float("inf"), 3 * rows * 7 * 4, 0.0):  # all, some, none of the pieces stay on the device
        monkeypatch.setattr("byol.serve.evaluate.objective.free_memory", lambda device, room=room: room)
        loss, gradient = Objective(x, y, 3, "cpu", rows)(parameters, 0.1)
        assert loss == pytest.approx(whole_loss, rel=1e-6)
        np.testing.assert_allclose(gradient, whole_gradient, atol=1e-6)


def test_curvature_against_finite_differences_of_the_gradient() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 5)).astype(np.float32), generator.integers(0, 3, 60)
    objective = Objective(x, y, 3, "cpu")
    parameters = generator.normal(size=3 * 6)
    steps = 1e-2 * np.eye(len(parameters))
    higher, lower = (np.diag([objective(parameters + sign * step, 0.1)[1] for step in steps]) for sign in (1, -1))
    np.testing.assert_allclose(objective.curvature(parameters, 0.1), (higher - lower) / 2e-2, rtol=2e-3, atol=1e-5)


def test_curvature_is_measured_on_samples_from_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol.serve.evaluate.objective.CURVATURE_SAMPLES", 4)
    x, y = np.arange(10, dtype=np.float32)[:, None], np.arange(10) % 2
    some = Objective(x, y, 2, "cpu").curvature(np.zeros(4), 0.0)
    np.testing.assert_allclose(some, [0.25 * np.square([0, 3, 6, 9]).mean()] * 2 + [0.25] * 2)


# --------------------------------------------------------------------------------------------- principal axes


@pytest.mark.parametrize("samples", [20, 200])
def test_rotation_keeps_products_between_samples(samples: int) -> None:
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(samples, 30)) @ generator.normal(size=(30, 30)) + 5).astype(np.float32)
    x[:, 3] = 7.0  # constant
    order = generator.permutation(samples)
    rotated = rotate(x, order)
    x = x[order]
    standard = (x - rotated.mean) / rotated.scale
    assert rotated.x.shape == (samples, 30 if samples > 30 else 19)  # centred: one axis fewer than samples
    np.testing.assert_allclose(rotated.x @ rotated.x.T, standard @ standard.T, atol=1e-4)
    np.testing.assert_allclose(rotated.axes.T @ rotated.axes, np.eye(rotated.x.shape[1]), atol=1e-6)
    covariance = np.cov(rotated.x.T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-4)
    weight, bias = generator.normal(size=(2, rotated.x.shape[1])), generator.normal(size=2)
    raw, shift = rotated.coefficients(weight, bias)
    np.testing.assert_allclose(x @ raw.T + shift, rotated.x @ weight.T + bias, atol=1e-4)


def test_fewer_samples_than_features_against_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    y = np.arange(40) % 4
    x, queries = (generator.normal(size=(n, 100)) + np.eye(100)[np.arange(n) % 4] * 4 for n in (40, 60))
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=1 / (1e-2 * 40), tol=1e-8, max_iter=3000).fit(scaler.transform(x), y)
    probe = LinearProbe(1e-2, "cpu").fit(x, y)
    expected = reference.predict_proba(scaler.transform(queries))
    np.testing.assert_allclose(probe.predict_proba(queries), expected, atol=2e-3)


def test_graph_is_valid_and_small() -> None:
    model = objective_graph(samples=10, dim=3, classes=4)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= {
        "Gemm", "LogSoftmax", "GatherElements", "Cast", "ReduceSum", "Div", "Exp", "Sub", "ScatterElements", "Mul",
    }  # fmt: skip
    assert len(model.SerializeToString()) < 5000  # the data are inputs, kept on the device


# --------------------------------------------------------------------------------------- against scikit-learn


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_solution_against_scikit_learn(digits: tuple[np.ndarray, ...], l2: float) -> None:
    """Same objective: ours is a mean, scikit-learn's a sum, so C = 1 / (l2 N)."""
    x, y, queries, truth = digits
    scaler = StandardScaler().fit(x.astype(np.float64))
    reference = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-6, max_iter=3000).fit(scaler.transform(x), y)
    probe = LinearProbe(l2, "cpu").fit(x, y)
    weight = probe.coef_ * scaler.scale_
    bias = probe.intercept_ + probe.coef_ @ scaler.mean_
    ours = loss_64(scaler.transform(x), y, weight, bias, l2)
    theirs = loss_64(scaler.transform(x), y, reference.coef_, reference.intercept_, l2)
    # stops when an iteration gains less than 1e-8: a few of them may be missing
    assert ours <= theirs + 2e-6
    assert probe.score(queries, truth) >= reference.score(scaler.transform(queries), truth) - 1.5 / len(queries)
    # the optimum is flat where l2 is small: there equal losses still allow probabilities a little apart
    tolerance = {1.0: 1e-3, 1e-2: 3e-3, 1e-4: 3e-2}[l2]
    np.testing.assert_allclose(
        probe.predict_proba(queries), reference.predict_proba(scaler.transform(queries)), atol=tolerance
    )


def test_chosen_l2_is_as_accurate_as_scikit_learn(digits: tuple[np.ndarray, ...]) -> None:
    x, y, queries, truth = digits
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(max_iter=3000).fit(scaler.transform(x), y)
    probe = LinearProbe(device="cpu").fit(x, y)
    # within two of 797 images: the hold-out chooses another strength than C = 1
    assert probe.score(queries, truth) >= reference.score(scaler.transform(queries), truth) - 2.5 / len(queries)
    assert probe.holdout_[probe.l2_] == max(probe.holdout_.values())


def test_attributes_and_outputs(digits: tuple[np.ndarray, ...]) -> None:
    x, y, queries, truth = digits
    probe = LinearProbe(1e-2, "cpu")
    assert probe.fit(x, y) is probe
    assert probe.coef_.shape == (10, 64)
    assert probe.intercept_.shape == (10,)
    assert probe.classes_.tolist() == list(range(10))
    assert (probe.l2_, probe.device_, probe.n_features_in_, probe.holdout_) == (0.01, "cpu", 64, {})
    assert 5 < probe.n_iter_ < 200
    logits = probe.decision_function(queries)
    np.testing.assert_allclose(logits, queries.astype(np.float64) @ probe.coef_.T + probe.intercept_)
    np.testing.assert_allclose(probe.predict_proba(queries), np.exp(log_softmax(logits, axis=1)))
    assert (probe.predict(queries) == logits.argmax(1)).all()
    top1, top5 = probe.top_k_scores(queries, truth)
    assert top1 == probe.score(queries, truth) < top5 <= 1


def test_classes_are_ranked_by_logits_where_probabilities_vanish() -> None:
    """A row far outside the training range: of three classes the true one is always among the best five."""
    x = np.repeat(np.eye(3), 4, axis=0) + np.random.default_rng(0).normal(0, 0.01, (12, 3))
    probe = LinearProbe(1e-4, "cpu").fit(x, np.repeat([0, 1, 2], 4))
    far = np.array([[3e4, -1e4, -2e4]] * 3)
    assert probe.predict_proba(far)[0, 1:].tolist() == [0, 0]
    order = np.argsort(-probe.decision_function(far[:1])[0])
    assert [probe.top_k_scores(far[:1], [label], (1, 2, 3, 5)) for label in order] == [
        [1, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
    ]


def test_two_classes_with_text_labels() -> None:
    generator = np.random.default_rng(0)
    y = np.array(["no", "yes"])[generator.integers(0, 2, 200)]
    x = generator.normal(size=(200, 3)) + (y == "yes")[:, None]
    probe = LinearProbe(1e-3, "cpu").fit(x, y)
    scaler = StandardScaler().fit(x)
    # two softmax rows share the penalty of one sigmoid row: w = w1 - w0 costs half as much
    reference = LogisticRegression(C=2 / (1e-3 * 200), tol=1e-8).fit(scaler.transform(x), y)
    np.testing.assert_allclose(probe.predict_proba(x), reference.predict_proba(scaler.transform(x)), atol=2e-3)
    assert probe.coef_.shape == (2, 3)
    assert set(probe.predict(x)) == {"no", "yes"}


def test_scale_and_shift_of_features_do_not_matter(digits: tuple[np.ndarray, ...]) -> None:
    x, y, queries, _ = digits
    scale = np.exp(np.random.default_rng(0).normal(0, 3, 64))
    one = LinearProbe(1e-2, "cpu").fit(x, y).predict_proba(queries)
    other = LinearProbe(1e-2, "cpu").fit(x * scale + 5 * scale, y).predict_proba(queries * scale + 5 * scale)
    np.testing.assert_allclose(one, other, atol=5e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6, -3e-7])
def test_constant_features_get_no_weight(value: float) -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 100)
    informative = generator.normal(size=(100, 1)) + 3 * y[:, None]
    x = np.concatenate([informative, np.full((100, 1), value)], axis=1).astype(np.float32)
    probe = LinearProbe(1e-3, "cpu").fit(x, y)
    assert np.abs(probe.coef_[:, 1] * value).max() < 1e-3
    assert probe.score(x, y) > 0.9


@pytest.mark.parametrize("samples", [6, 60])
def test_samples_that_are_all_alike_get_the_shares_of_the_classes(samples: int) -> None:
    probe = LinearProbe(1e-3, "cpu").fit(np.full((samples, 20), 0.3), np.arange(samples) % 3 == 0)
    np.testing.assert_allclose(probe.predict_proba(np.full((1, 20), 0.3)), [[2 / 3, 1 / 3]], atol=1e-3)


# ------------------------------------------------------------------------------------------------- choosing l2


def test_holdout_is_stratified_seeded_and_leaves_single_samples_in_the_fit() -> None:
    y = np.repeat([0, 1, 2, 3, 4], [1, 2, 5, 10, 100])
    held = holdout(y, seed=0)
    assert [int(held[y == c].sum()) for c in range(5)] == [0, 1, 1, 2, 20]
    assert (held == holdout(y, seed=0)).all()
    assert (held != holdout(y, seed=1)).any()


def test_l2_is_chosen_on_training_data_only(digits: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample that a choice looks at is a training sample, and no fit part sees its hold-out."""
    x, y, _, _ = digits
    seen: list[int] = []

    def spy(features: np.ndarray, *arguments: Any) -> Objective:
        seen.append(len(features))
        return Objective(features, *arguments)

    monkeypatch.setattr(linear, "Objective", spy)
    held = int(holdout(y, 0).sum())
    probe = LinearProbe(device="cpu").fit(x, y)
    assert seen == [1000 - held, 1000]
    assert set(probe.holdout_) <= set(linear.L2_GRID)


def test_noise_labels_choose_a_strong_penalty() -> None:
    """More features than samples and nothing to learn: weak penalties memorise, the hold-out shows it."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(200, 300)), generator.integers(0, 2, 200)
    x[:, 0] += 2.0 * y  # one weak signal
    probe = LinearProbe(device="cpu").fit(x, y)
    assert probe.l2_ >= 1e-2
    assert min(probe.holdout_) > min(linear.L2_GRID)  # so weaker ones were not tried


def test_single_samples_only() -> None:
    x = np.eye(4) + 0.01
    probe = LinearProbe(device="cpu").fit(x, list("abcd"))
    assert (probe.l2_, probe.holdout_) == (linear.L2_WITHOUT_HOLDOUT, {})
    assert probe.predict(x).tolist() == list("abcd")


def test_class_with_one_sample_among_others(digits: tuple[np.ndarray, ...]) -> None:
    x, y, _, _ = digits
    keep = (y < 3) | (np.arange(len(y)) == np.flatnonzero(y == 7)[0])
    probe = LinearProbe(device="cpu").fit(x[keep], y[keep])
    assert probe.classes_.tolist() == [0, 1, 2, 7]
    assert probe.predict(x[y == 7][:1]).tolist() == [7]


def test_same_input_same_result(digits: tuple[np.ndarray, ...]) -> None:
    x, y, _, _ = digits
    one, other = (LinearProbe(device="cpu").fit(x[:300], y[:300]) for _ in range(2))
    np.testing.assert_array_equal(one.coef_, other.coef_)
    assert one.holdout_ == other.holdout_


def test_too_few_iterations_are_said() -> None:
    x, y = load_digits(return_X_y=True)
    with pytest.warns(UserWarning, match="did not converge in 3 iterations"):
        LinearProbe(1e-4, "cpu", max_iter=3).fit(x, y)


@pytest.mark.parametrize("l2", ["strong", 0.0, -1.0, np.nan, np.inf, None, [1e-3]])
def test_impossible_l2_is_refused(l2: Any) -> None:
    with pytest.raises(ValueError, match="expected 'auto' or a positive number"):
        LinearProbe(l2, "cpu").fit(np.eye(2), [0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iter": "100"}, "max_iter is '100'; expected a whole number of 0 or more"),
        ({"seed": "zero"}, "seed is 'zero'; expected a whole number of 0 or more"),
        ({"seed": -1}, "seed is -1; expected a whole number of 0 or more"),
    ],
)
def test_settings_of_a_wrong_type_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearProbe(device="cpu", **options).fit(np.eye(2), [0, 1])


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="one class only"):
        LinearProbe(device="cpu").fit(np.eye(2), ["a", "a"])
