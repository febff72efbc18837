"""scikit-learn takes the classifiers as its own: its checks, clones, pipelines, searches, pickles."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from byol.serve import KNNClassifier, LinearProbe
from tests.support.documents import code

ESTIMATORS = [KNNClassifier(5, device="cpu"), LinearProbe(1e-2, "cpu")]
# What does not pass, and why; docs/protocols.md says the same.
REFUSED = {
    "KNNClassifier": {
        "check_supervised_y_2d",  # labels of shape (N, 1) are refused, not flattened with a warning
        "check_methods_subset_invariance",  # float32 similarities of one query and of many are rounded differently
    },
    "LinearProbe": {"check_supervised_y_2d"},
}


def name_of(estimator: Any) -> str:
    return type(estimator).__name__


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x[:300], y[:300]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name_of)
def test_scikit_learns_own_checks(estimator: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it inherits from another class, that k is larger than its bank
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {r["check_name"]: repr(r["exception"]) for r in results if r["status"] == "failed"}
    assert failed.keys() == REFUSED[name_of(estimator)], failed
    assert len(results) > 40


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name_of)
def test_clone_and_settings(estimator: Any, digits: tuple[np.ndarray, np.ndarray]) -> None:
    fitted = clone(estimator).fit(*digits)
    again = clone(fitted)
    assert again.get_params() == estimator.get_params()
    assert not hasattr(again, "classes_")
    assert is_classifier(again)
    assert again.set_params(device="auto") is again
    assert repr(again) == repr(estimator).replace("device='cpu'", "device='auto'")
    with pytest.raises(ValueError, match=r"has no setting 'c'; expected "):
        again.set_params(c=1)
    with pytest.raises(NotFittedError, match="call fit"):
        again.predict(digits[0])


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name_of)
@pytest.mark.parametrize("copied", [lambda fitted: pickle.loads(pickle.dumps(fitted)), copy.deepcopy])
def test_a_fitted_one_is_pickled_and_says_what_it_runs_on_afterwards(
    estimator: Any, copied: Any, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = digits
    fitted = clone(estimator).fit(x[:200], y[:200])
    fitted.reason_ = "asked for elsewhere"
    again = copied(fitted)
    np.testing.assert_array_equal(again.predict_proba(x[200:]), fitted.predict_proba(x[200:]))
    assert again.device_ == "cpu"
    if isinstance(estimator, KNNClassifier):  # the probe is arrays, whatever fitted it
        assert again.reason_ == "asked for"


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name_of)
def test_pipelines_cross_validation_and_searches(estimator: Any, digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    pipeline = make_pipeline(StandardScaler(), PCA(20, random_state=0), clone(estimator))
    assert pipeline.fit(x[:200], y[:200]).score(x[200:], y[200:]) > 0.85
    scores = cross_val_score(clone(estimator), x, y, cv=3)
    assert scores.min() > 0.85
    assert scores.max() < 1.0  # so that the folds are not what was fitted
    setting, values = ("k", [1, 5]) if isinstance(estimator, KNNClassifier) else ("l2", [1e-2, 10.0])
    search = GridSearchCV(clone(estimator), {setting: values}, cv=3).fit(x, y)
    assert search.best_params_[setting] in values
    assert search.best_estimator_.predict(x).shape == (300,)


def test_two_classes_have_one_decision_as_scorers_want_it(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    few = y < 2
    probe = LinearProbe(1e-2, "cpu")
    assert cross_val_score(probe, x[few], y[few], cv=3, scoring="roc_auc").min() > 0.99
    probe.fit(x[few], y[few])
    decision, p = probe.decision_function(x[few]), probe.predict_proba(x[few])
    assert decision.shape == (few.sum(),)
    np.testing.assert_allclose(np.log(p[:, 1]) - np.log(p[:, 0]), decision, rtol=1e-6, atol=1e-9)


def test_the_documented_example(digits: tuple[np.ndarray, np.ndarray]) -> None:
    (block,) = code("protocols.md", "With scikit-learn")
    names: dict[str, Any] = {"x": digits[0], "y": digits[1]}
    exec(block, names)
    assert names["search"].best_score_ > 0.85


def test_serving_does_not_import_scikit_learn() -> None:
    program = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from byol.serve import KNNClassifier, LinearProbe\n"
        "x, y = [[0.0, 1], [1, 0], [1, 1], [0, 2]], [0, 1, 1, 0]\n"
        "for c in (KNNClassifier(1, device='cpu'), LinearProbe(0.1, 'cpu')):\n"
        "    assert c.set_params(device='auto').fit(x, y).predict(x).tolist() == y and repr(c)\n"
        "try:\n    KNNClassifier().predict(x)\nexcept ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "this KNNClassifier is not fitted; call fit(x, y) first\n"), (
        done.stderr
    )
