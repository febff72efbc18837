"""A bundle's proof: every hash, then the golden inputs of every graph through ONNX Runtime."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from byol.serve.bundle import GATES, Bundle, BundleError, compare_features
from byol.serve.manifest import ENCODER, MANIFEST
from byol.serve.pipeline import open_graph
from byol.serve.strict_json import plain


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

    Damage is reported, not raised; a manifest that cannot be read raises `BundleError`.
    """
    opened = Bundle.open(bundle)
    files: dict[str, str] = {}
    for name in sorted(opened.manifest.files):
        try:
            opened.read(name)
            files[name] = "ok"
        except BundleError as error:
            files[name] = str(error)
    problems = [text for text in files.values() if text != "ok"]
    golden: dict[str, dict[str, float]] = {}
    if not problems:  # a graph is run only when all of the bundle is what was exported
        problems += _misdescribed(opened)
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
    images, expected = bundle.golden(name)
    session = open_graph(bundle, name, "cpu")
    found = session.run({bundle.manifest.onnx.input: images})[0]
    error, cosine = compare_features(expected, found)
    return {"images": len(images), "max_relative_error": error, "min_cosine": cosine}


def _misdescribed(bundle: Bundle) -> list[str]:
    """What the manifest says of the encoder's graph and the graph does not."""
    import onnx

    try:
        proto = onnx.load_model_from_string(bundle.read(ENCODER))
    except Exception as error:  # protobuf's own
        return [f"{ENCODER} is not an ONNX file: {error}"]
    stated = bundle.manifest.onnx
    opsets = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    notes = {item.key: item.value for item in proto.metadata_props}
    contract = json.dumps(plain(bundle.manifest.preprocess), sort_keys=True)
    pairs = {
        "opset": (stated.opset, *opsets),
        "ir_version": (stated.ir_version, proto.ir_version),
        "preprocess": (contract, notes.get("preprocess", contract)),
    }
    return [f"{MANIFEST} says {k} {v[0]}, {ENCODER} {v[-1]}" for k, v in pairs.items() if len(set(v)) > 1]
