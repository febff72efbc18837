"""Verify a bundle: every hash, then the golden inputs of every graph through ONNX Runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass

from byol.bundle.folder import Bundle
from byol.bundle.parity import GATES
from byol.bundle.schema import BundleError
from byol.serve.pipeline import golden_deviation, open_graph


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`: per file "ok" or what is wrong; per graph the deviation from the golden features."""

    files: dict[str, str]
    golden: dict[str, dict[str, float]]
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.problems


def verify(bundle: str | os.PathLike[str]) -> VerifyReport:
    """Check every hash, then run the golden inputs through ONNX Runtime on the CPU and compare.

    Damage is reported, not raised; an unreadable manifest raises `BundleError`.
    """
    opened = Bundle.open(bundle)
    files: dict[str, str] = {}
    for name in sorted(opened.manifest.files):
        try:
            opened.check(name)
            files[name] = "ok"
        except BundleError as error:
            files[name] = str(error)
    problems = [text for text in files.values() if text != "ok"]
    golden: dict[str, dict[str, float]] = {}
    if not problems:  # graphs run only when the whole bundle is intact
        for name in opened.manifest.graphs:
            try:
                golden[name] = _replay(opened, name)
            except ValueError as error:
                problems.append(str(error))
                continue
            problem = GATES[name].problem(golden[name]["max_relative_error"], golden[name]["min_cosine"])
            if problem:
                problems.append(f"{name} does not reproduce the golden features: {problem}")
    return VerifyReport(files, golden, problems)


def _replay(bundle: Bundle, name: str) -> dict[str, float]:
    images, _ = bundle.golden(name)
    session = open_graph(bundle, name, "cpu", pictures=[images.shape[1:3]])
    error, cosine = golden_deviation(bundle, name, session)
    return {"images": len(images), "max_relative_error": error, "min_cosine": cosine}
