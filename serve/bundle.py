"""A bundle on disk: its manifest, its files (hash first, use second), its proof. The schema is `serve/manifest.py`.

Shapes: N images, S pixels, D features.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from byol.images import printable
from byol.serve.manifest import GOLDEN, MANIFEST, MAX_BYTES, BundleError, FileEntry, Manifest, Parity

__all__ = ["Bundle", "BundleError", "Manifest", "VerifyReport", "compare_features", "load_manifest", "verify"]

# The gate for fp32: what ONNX Runtime may differ from the reference features (normal is 1e-6).
MAX_RELATIVE_ERROR = 1e-4
MIN_COSINE = 0.99999


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `digest` is the SHA-256 of `manifest.json` as it is on disk: it names the bundle in outputs."""

    folder: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Read and check the manifest; the other files are checked when they are read. Raises `BundleError`."""
        path = Path(folder)
        if not path.is_dir():
            raise BundleError(f"{printable(path)} is not a folder; expected a bundle written by `byol export`")
        file = path / MANIFEST
        try:
            with open(file, "rb") as stream:
                text = stream.read(MAX_BYTES + 1)
            if len(text) > MAX_BYTES:
                raise BundleError(f"larger than {MAX_BYTES} bytes")
            manifest = Manifest.from_json(text)
        except FileNotFoundError:
            raise BundleError(f"{printable(path)} is not a bundle: it holds no {MANIFEST}") from None
        except (OSError, BundleError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise BundleError(f"{printable(file)}: {reason}") from error
        return cls(path, manifest, hashlib.sha256(text).hexdigest())

    def read(self, name: str) -> bytes:
        """The bytes of one file of the manifest, verified. What is used is what was hashed. Raises `BundleError`."""
        entry, path = self.manifest.files[name], self.folder / name
        try:
            size = path.stat().st_size
            content = path.read_bytes() if size == entry.size else b""
        except OSError as error:
            raise BundleError(f"{printable(path)}: {error.strerror}; export the bundle again") from error
        if size != entry.size:
            raise BundleError(f"{printable(path)} has {size} bytes, the manifest says {entry.size}: damaged")
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(f"{printable(path)} does not have the manifest's sha256: damaged")
        return content

    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        """The verified golden inputs, uint8 (N, S, S, 3), and their features, float32 (N, D)."""
        from safetensors.numpy import load

        size, dim = self.manifest.image_size, self.manifest.feature_dim
        name, content = printable(self.folder / GOLDEN), self.read(GOLDEN)
        try:
            tensors = load(content)
        except Exception as error:  # SafetensorError, and NumPy's for types it lacks
            raise BundleError(f"{name} is not a safetensors file: {error}") from error
        if set(tensors) != {"images", "features"}:
            raise BundleError(f"{name} must hold `images` and `features`, found {sorted(tensors)}")
        images, features = tensors["images"], tensors["features"]
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or len(images) == 0:
            raise BundleError(f"{name}: images must be uint8 (N, {size}, {size}, 3), not {images.dtype} {images.shape}")
        if features.dtype != np.float32 or features.shape != (len(images), dim):
            raise BundleError(
                f"{name}: features must be float32 ({len(images)}, {dim}), found {features.dtype} {features.shape}"
            )
        return images, features


def load_manifest(bundle: str | os.PathLike[str]) -> Manifest:
    """The checked manifest of a bundle folder. Raises `BundleError`."""
    return Bundle.open(bundle).manifest


def describe_file(
    path: str | os.PathLike[str], precision: str | None = None, parity: Parity | None = None
) -> FileEntry:
    """The manifest's entry for a file that is written: its SHA-256 and size, and for a graph its parity."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(digest, stream.tell(), precision, parity)


def compare_features(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """(largest relative error, smallest cosine) of `found` against `expected`, both (N, D), in float64.

    The error of a row is max |found - expected| / max |expected|, so it does not depend on the features' scale.
    A value that is not finite counts as infinite error and cosine -1. Raises `ValueError` when the shapes differ.
    """
    if expected.shape != found.shape or expected.ndim != 2 or expected.size == 0:
        raise ValueError(f"features must have equal shapes (N, D), found {expected.shape} and {found.shape}")
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf"), -1.0
    tiny = np.finfo(np.float64).tiny
    error = np.abs(b - a).max(1) / np.maximum(np.abs(a).max(1), tiny)  # (N,)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.where(error == 0, 1.0, (a * b).sum(1) / np.maximum(norms, tiny))  # equal zero rows agree
    return float(error.max()), float(cosine.min())


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
        for name in (name for name in files if name.endswith(".onnx")):
            try:
                golden[name] = _replay(opened, name)
            except ValueError as error:
                problems.append(str(error))
            else:
                problems += _gate(name, golden[name])
    return VerifyReport(files, golden, problems)


def _replay(bundle: Bundle, name: str) -> dict[str, float]:
    from byol.serve.encoder import open_encoder_session

    images, expected = bundle.golden()
    session = open_encoder_session(bundle.read(name), bundle.manifest, "cpu")
    found = session.run({bundle.manifest.onnx.input: images})[0]
    error, cosine = compare_features(expected, found)
    return {"images": len(images), "max_relative_error": error, "min_cosine": cosine}


def _gate(name: str, figures: dict[str, float]) -> list[str]:
    error, cosine = figures["max_relative_error"], figures["min_cosine"]
    if error <= MAX_RELATIVE_ERROR and cosine >= MIN_COSINE:
        return []
    return [
        f"{name} does not reproduce the golden features: relative error {error:.3g} (at most {MAX_RELATIVE_ERROR:g}), "
        f"cosine {cosine:.7f} (at least {MIN_COSINE})"
    ]
