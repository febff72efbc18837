"""What was measured of a bundle's encoder and classifier, as its manifest says it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from byol.bundle.schema import check

BASELINES = {"untrained": "untrained encoder", "pixels": "raw pixels"}  # what an encoder is measured beside


@dataclass(frozen=True)
class Evaluation:
    """kNN accuracy measured at export: `top1` (0 to 1) of each graph on named data; the rest as in `byol knn`.

    `baselines`: the top-1 of what the encoder was measured beside, by the names in `BASELINES`; None where it was not.
    """

    train: str
    test: str
    n_train: int
    n_test: int
    k: int
    temperature: float
    top1: dict[str, float]
    baselines: dict[str, float] | None = None

    def __post_init__(self) -> None:
        for name, value in self.top1.items():
            check(0 <= value <= 1, f"evaluation.top1[{name!r}] must lie in 0 to 1, found {value}")
        _check_baselines(self.baselines, "evaluation")


@dataclass(frozen=True)
class Head:
    """The linear layer inside `classifier.onnx`: its classes in the order of the logits, and how it was fitted.

    `l2` is None where it was trained together with the encoder. `top1` (0 to 1) was measured on `n_test` images of
    `test`; all three are None where nothing was measured. `baselines`: see `Evaluation`; by probes fitted alike.
    """

    classes: tuple[str, ...]
    l2: float | None
    train: str
    n_train: int
    test: str | None = None
    n_test: int | None = None
    top1: float | None = None
    baselines: dict[str, float] | None = None

    def __post_init__(self) -> None:
        check(len(set(self.classes)) == len(self.classes) >= 2, "classifier.classes needs 2 or more different names")
        measured = {value is not None for value in (self.test, self.n_test, self.top1)}
        check(len(measured) == 1, "classifier.test, n_test and top1 belong together")
        _check_baselines(self.baselines, "classifier")


def _check_baselines(top1: dict[str, float] | None, where: str) -> None:
    for name, value in (top1 or {}).items():
        check(name in BASELINES, f"{where}.baselines names {name!r}; this byol knows {', '.join(BASELINES)}")
        check(0 <= value <= 1, f"{where}.baselines[{name!r}] must lie in 0 to 1, found {value}")
