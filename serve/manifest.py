"""The bundle's manifest: the schema, its checks, reading and writing. Torch-free; export and serving share it.

What cannot be read with full understanding is refused: unknown keys, another preprocessing, a newer schema.
"""

from __future__ import annotations

import json
import math
import re
import types
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from byol.files import atomic_file
from byol.images import Preprocess

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ENCODER, WEIGHTS, GOLDEN = "encoder.onnx", "encoder.safetensors", "golden.safetensors"
PRECISIONS = ("fp32",)
MAX_BYTES = 1 << 20  # a manifest has a few kilobytes; anything huge is not one

T = TypeVar("T")


class BundleError(ValueError):
    """A bundle that is damaged, incomplete or not understood. The message names the file and the field."""


@dataclass(frozen=True)
class Architecture:
    """How to rebuild the encoder: `library`'s model `name`, with `stem` saying which first layers it has.

    `img_size` is the keyword argument of that name with which timm builds a model for one size; null for all others.
    """

    library: str
    name: str
    stem: str
    img_size: int | None = None


@dataclass(frozen=True)
class PreprocessSpec:
    """The preprocessing contract. Only one is defined: `byol.images.Preprocess`; `mean` and `std` lie in the graph."""

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: str = "bicubic"
    antialias: bool = True
    exif_orientation: str = "applied"
    color: str = "RGB"
    layout: str = "NHWC"
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        legal = {f.name: f.default for f in fields(self) if f.name not in ("resize", "crop", "mean", "std")}
        for name, value in legal.items():
            found = getattr(self, name)
            _check(found == value, f"preprocess.{name} is {found!r}; this byol knows only {value!r}")
        _check(1 <= self.crop <= self.resize, f"preprocess needs 1 <= crop <= resize, found {self.crop}, {self.resize}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            _check(len(numbers) == 3, f"preprocess.{name} must hold 3 numbers, found {len(numbers)}")
        _check(min(self.std) > 0, f"preprocess.std must be positive, found {list(self.std)}")

    def transform(self) -> Preprocess:
        """The function that does what this says."""
        return Preprocess(self.resize, self.crop)


@dataclass(frozen=True)
class Graph:
    """The interface of every `.onnx` file: opset, IR version, the names of its input and its output."""

    opset: int
    ir_version: int
    input: str = "images"
    output: str = "features"


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime was from torch at export (see `byol.serve.bundle.compare_features`), and where."""

    max_relative_error: float
    min_cosine: float
    batch_sizes: tuple[int, ...]
    provider: str
    onnxruntime: str
    torch: str


@dataclass(frozen=True)
class FileEntry:
    """One file: SHA-256 (hexadecimal) and size in bytes; for `.onnx` files also precision and parity."""

    sha256: str
    size: int
    precision: str | None = None
    parity: Parity | None = None

    def __post_init__(self) -> None:
        _check(bool(re.fullmatch("[0-9a-f]{64}", self.sha256)), f"sha256 must be 64 hex digits, found {self.sha256!r}")
        _check(self.size >= 0, f"size must not be negative, found {self.size}")
        _check((self.precision is None) == (self.parity is None), "precision and parity belong together")
        if self.precision is not None:
            _check(
                self.precision in PRECISIONS,
                f"precision is {self.precision!r}; this byol knows {', '.join(PRECISIONS)}",
            )


@dataclass(frozen=True)
class Training:
    """Where the weights come from: data name, number of images, optimizer steps, epochs, digest of the settings."""

    data: str
    images: int
    steps: int
    epochs: float
    config_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole manifest, checked: an instance that exists is valid. Raises `BundleError` naming the field."""

    architecture: Architecture
    feature_dim: int
    image_size: int
    preprocess: PreprocessSpec
    onnx: Graph
    files: dict[str, FileEntry]
    training: Training | None
    byol_version: str
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check_version(self.schema_version)
        _check(self.feature_dim >= 1, f"feature_dim must be at least 1, found {self.feature_dim}")
        crop = self.preprocess.crop
        _check(self.image_size == crop, f"image_size is {self.image_size}, but preprocess.crop is {crop}")
        built = self.architecture.img_size
        _check(built in (None, crop), f"architecture.img_size is {built}, but image_size is {self.image_size}")
        for name, entry in self.files.items():
            _check_name(name)
            wanted = name.endswith(".onnx")
            _check(wanted == (entry.parity is not None), f"files[{name!r}]: .onnx files, and only they, carry parity")
        for name in (ENCODER, WEIGHTS, GOLDEN):
            _check(name in self.files, f"files lists no {name}")

    def to_json(self) -> str:
        """The text of `manifest.json`: sorted keys, indent 2, the same manifest always the same text."""
        return json.dumps(_plain(self), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"

    def write(self, folder: str | Path) -> None:
        """Write `manifest.json` into the bundle folder, whole or not at all; first make sure that it can be read."""
        text = self.to_json()
        _check(self.from_json(text) == self, "the manifest does not read back as itself")
        with atomic_file(Path(folder) / MANIFEST) as path:
            path.write_bytes(text.encode())

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read and check. Raises `BundleError`."""
        try:
            data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except BundleError:
            raise
        except (ValueError, RecursionError) as error:
            raise BundleError(f"not valid JSON ({error})") from error
        _check(isinstance(data, dict), "not a JSON object")
        _check("schema_version" in data, "no schema_version, so this is not a byol bundle's manifest")
        _check_version(data["schema_version"])  # first: a newer schema may differ in anything else
        manifest: Manifest = _build(cls, data, "")
        return manifest


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise BundleError(message)


def _check_version(version: object) -> None:
    _check(type(version) is int and version >= 1, f"schema_version must be a positive integer, found {version!r}")
    _check(
        version == SCHEMA_VERSION,
        f"schema_version is {version}, this byol reads {SCHEMA_VERSION}; upgrade it: pip install -U byol",
    )


def _check_name(name: str) -> None:
    """Plain names only: no folder, no drive, nothing hidden, nothing that leaves the bundle."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) and not name.endswith(".")
    _check(bool(plain) and name != MANIFEST, f"files names {name!r}; only plain file names of the bundle are allowed")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        _check(key not in unique, f"the key {key!r} stands twice in one object")
        unique[key] = value
    return unique


def _no_constant(name: str) -> None:
    raise BundleError(f"{name} is not a number that a manifest may hold")


# ------------------------------------------------------------------------------- JSON values <-> dataclasses


def _build(hint: Any, value: Any, where: str) -> Any:
    """The JSON value as the annotated type. Raises `BundleError` naming the place."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):  # X | None
        return None if value is None else _build(arguments[0], value, where)
    if origin is tuple:
        _check(isinstance(value, list), f"{where} must be a list, found {_kind(value)}")
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _check(isinstance(value, dict), f"{where} must be an object, found {_kind(value)}")
        return {key: _build(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if is_dataclass(hint):
        return _build_dataclass(hint, value, where)
    if hint is float and type(value) is int:
        value = _as_float(value, where)
    _check(type(value) is hint, f"{where} must be {hint.__name__}, found {_kind(value)}")
    _check(hint is not float or math.isfinite(value), f"{where} must be finite, found {value}")
    _check(hint is not str or value.isprintable(), f"{where} holds characters that cannot be printed")
    return value


def _build_dataclass(cls: Any, value: Any, where: str) -> Any:
    _check(isinstance(value, dict), f"{where or 'the manifest'} must be an object, found {_kind(value)}")
    hints = get_type_hints(cls)
    dot = f"{where}." if where else ""
    unknown = sorted(set(value) - set(hints))
    _check(not unknown, f"unknown key {dot}{unknown[0]}; this byol does not know what it means" if unknown else "")
    # In a file everything is spelt out, so that other readers need no table of defaults; only null fields may lack.
    for name, hint in hints.items():
        _check(name in value or type(None) in get_args(hint), f"{dot}{name} is missing")
    built = {name: _build(hint, value.get(name), dot + name) for name, hint in hints.items()}
    try:
        return cls(**built)
    except BundleError as error:
        raise BundleError(f"{where}: {error}" if where.startswith("files") else str(error)) from error


def _as_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise BundleError(f"{where} is too large for a float") from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"the number {value!r:.40}")


def _plain(value: Any) -> Any:
    """Dataclasses as JSON values; what a file or an architecture does not have is left out."""
    if is_dataclass(value):
        items = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        sparse = isinstance(value, FileEntry | Architecture)
        return {k: v for k, v in items.items() if v is not None} if sparse else items
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
