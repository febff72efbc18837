"""A bundle on disk: its manifest, its files (hash first, use second), its gates. The schema is in `manifest.py`.

Shapes: N images, S pixels, D features.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from byol.bundle.manifest import (
    ANY_SIZE,
    CLASSIFIER,
    ENCODER,
    ENCODER_WEIGHTS,
    FILES,
    GOLDEN,
    MANIFEST,
    MAX_BYTES,
    WEIGHTS,
    FileEntry,
    Manifest,
    Parity,
)
from byol.bundle.model import Model
from byol.bundle.schema import BundleError, read_object
from byol.files.atomic import contents, is_half_filled
from byol.files.places import require_folder_place
from byol.files.regular import open_regular, read_regular, sha256_of
from byol.limits import limit
from byol.run import is_run_folder
from byol.strict_json import require_legal
from byol.text import printable, quoted, reason_of

_MOST_PADDING = 65_536  # bytes in a file of weights behind the last one


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `digest` is the SHA-256 of `manifest.json` as it is on disk: it names the bundle in outputs."""

    folder: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Read and check the manifest; other files are checked when read. Raises `BundleError`."""
        require_legal(isinstance(folder, str | os.PathLike), "bundle", folder, "the path of a bundle")
        path = Path(folder)
        if not path.is_dir():
            raise BundleError(f"{printable(path)} is not a folder; expected a bundle: {_export(path)}")
        file = path / MANIFEST
        try:
            text = read_regular(file, MAX_BYTES, follow=False)
            manifest = Manifest.from_json(text)
        except FileNotFoundError:
            why = f"is not a bundle: it holds no {MANIFEST}"
            if is_run_folder(os.fspath(path)):
                why = f"is a run, not a bundle; export it first: {_export(path)}"
            raise BundleError(f"{printable(path)} {why}") from None
        except (OSError, BundleError) as error:
            raise BundleError(f"{printable(file)}: {reason_of(error)}") from error
        return cls(path, manifest, hashlib.sha256(text).hexdigest())

    def read(self, name: str) -> bytes:
        """The verified bytes of one file of the manifest: exactly those hashed. Raises `BundleError`."""
        with self._opened(name) as stream:
            content = stream.read(self.manifest.files[name].size)
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def check(self, name: str) -> None:
        """Verify one file of the manifest without holding it in memory. Raises `BundleError`."""
        digest, left = hashlib.sha256(), self.manifest.files[name].size
        with self._opened(name) as stream:
            while left and (part := stream.read(min(left, 1 << 20))):
                digest.update(part)
                left -= len(part)
        self._compare(name, digest.hexdigest())

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """Open a file of the manifest, of the stated size; anything appended later is not read."""
        wanted, path = self.manifest.files[name].size, self.folder / name
        most = limit("BYOL_WEIGHTS_GB") * 10**9 if name in (WEIGHTS, ENCODER_WEIGHTS) else 2**31  # as protobuf's
        try:
            with open_regular(path, follow=False) as stream:
                size = os.fstat(stream.fileno()).st_size
                if size != wanted:
                    raise BundleError(f"{printable(path)} has {size} bytes, not the manifest's {wanted}: damaged")
                if size > most:  # BYOL_WEIGHTS_GB sets it for weights
                    raise BundleError(f"{printable(path)} has {size:,} bytes, more than the {most:,} allowed")
                yield stream
        except OSError as error:
            raise BundleError(f"{printable(path)}: {reason_of(error)}; export the bundle again") from error

    def _compare(self, name: str, digest: str) -> None:
        if digest != self.manifest.files[name].sha256:
            raise BundleError(f"{printable(self.folder / name)} does not have the manifest's sha256: damaged")

    def model(self, name: str, pictures: Sequence[tuple[int, int]] = ()) -> Model:
        """A graph and its files of weights, verified and judged (see `byol.bundle.graph.judge`).

        A bundle's graphs reach ONNX Runtime no other way. Raises `BundleError`.
        """
        from byol.bundle.graph.judge import judge

        graph = self.read(name)
        weights = {}
        for file, size in judge(name, graph, self.manifest, pictures).items():
            if file not in self.manifest.files:
                raise BundleError(f"{name} keeps weights in {printable(file)}, a file that the manifest does not list")
            found = self.manifest.files[file].size
            if not size <= found < size + _MOST_PADDING:  # before it is read
                raise BundleError(f"{name} needs {size} bytes of {printable(file)}, which has {found}")
            weights[file] = self.read(file)
        return Model(graph, weights)

    def golden(self, graph: str = ENCODER) -> tuple[np.ndarray, np.ndarray]:
        """A graph's verified golden inputs, uint8 (N, H, W, 3), and outputs, float32 (N, D). Raises `BundleError`.

        H and W are S, except for the graph that takes any size.
        """
        size = self.manifest.image_size
        dim = len(self.manifest.classifier.classes) if graph == CLASSIFIER and self.manifest.classifier else 0
        dim = dim or self.manifest.feature_dim
        inputs, outputs = golden_names(graph)
        name, tensors = printable(self.folder / GOLDEN), self.golden_tensors()
        images, expected = tensors[inputs], tensors[outputs]
        shape = "(N, H, W, 3)" if graph == ANY_SIZE else f"(N, {size}, {size}, 3)"
        fits = images.ndim == 4 and images.shape[3] == 3 and (graph == ANY_SIZE or images.shape[1:3] == (size, size))
        if images.dtype != np.uint8 or not fits or 0 in images.shape:
            raise BundleError(f"{name}: {inputs} must be uint8 {shape}, not {images.dtype} {images.shape}")
        if expected.dtype != np.float32 or expected.shape != (len(images), dim):
            raise BundleError(
                f"{name}: {outputs} must be float32 ({len(images)}, {dim}), found {expected.dtype} {expected.shape}"
            )
        return images, expected

    def golden_tensors(self) -> dict[str, np.ndarray]:
        """All tensors of the verified `golden.safetensors`, names checked against the graphs. Raises `BundleError`."""
        from safetensors.numpy import load

        name, content = printable(self.folder / GOLDEN), self.read(GOLDEN)
        try:
            tensors: dict[str, np.ndarray] = load(content)
        except Exception as error:  # SafetensorError, and NumPy's for types it lacks
            raise BundleError(f"{name} is not a safetensors file: {error}") from error
        wanted = {tensor for graph in self.manifest.graphs for tensor in golden_names(graph)}
        if set(tensors) != wanted:
            listed = ", ".join(f"`{tensor}`" for tensor in sorted(wanted))
            raise BundleError(f"{name} must hold {listed}, found {sorted(tensors)}")
        return tensors


def _export(path: Path) -> str:
    """The command that makes a bundle of a run; for a checkpoint too, but not for what is neither."""
    is_checkpoint = path.is_dir() or path.suffix == ".safetensors"
    return f"byol export {quoted(path) if is_checkpoint else 'RUN'} --out BUNDLE"


def golden_names(graph: str) -> tuple[str, str]:
    """The tensors of `golden.safetensors` that are a graph's inputs and outputs."""
    if graph == ENCODER:
        return "images", "features"
    return f"{graph}:images" if graph == ANY_SIZE else "images", graph


def require_place(out: Path) -> None:
    """Raise `ValueError` when a bundle cannot be written to `out`, or would replace anything but a bundle."""
    require_folder_place(out)
    found = contents(out) if out.exists() else set()
    if not found or (found <= FILES and is_half_filled(out)):
        return
    try:
        manifest = read_object(read_regular(out / MANIFEST, MAX_BYTES, follow=False))
    except (OSError, BundleError):
        manifest = {}
    files = manifest.get("files")
    if "schema_version" not in manifest or not isinstance(files, dict) or not files.keys() <= FILES:
        raise ValueError(f"{printable(out)} exists and is not a bundle; choose another folder")
    others = sorted(found - {MANIFEST, *files})
    if others:
        named = ", ".join(printable(Path(name)) for name in others[:5])
        raise ValueError(
            f"{printable(out)} holds more than a bundle ({named}), which the new one would replace; "
            "move them away, or choose another folder"
        )


def describe_file(
    path: str | os.PathLike[str], precision: str | None = None, parity: Parity | None = None
) -> FileEntry:
    """The manifest's entry for a written file: its SHA-256 and size, and a graph's parity."""
    return FileEntry(sha256_of(path), os.path.getsize(path), precision, parity)
