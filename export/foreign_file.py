"""Tensors out of checkpoint files that other toolkits wrote, without running code from them."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Where toolkits keep the weights inside what they save; the first one found counts.
CONTAINERS = ("state_dict", "model", "model_state_dict", "module", "net")
WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put into names

_CONVERT = """\
{path} holds more than tensors ({reason}), and reading that would run code from it. In the environment that wrote it, \
and only if you trust it, convert it:
  import torch
  from safetensors.torch import save_file
  weights = torch.load({name!r}, map_location="cpu", weights_only=False)["state_dict"]
  save_file({{k: v.clone().contiguous() for k, v in weights.items()}}, {target!r})
and export {target}"""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors` or `.npz` file, or of what `torch.save` wrote (with `weights_only=True`).

    Wrapper prefixes are taken off the names. Raises `ValueError` for a damaged file, one that needs code to be read
    (the message says how to convert it), and one without named tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix == ".npz":
        return _arrays(path)
    if path.suffix == ".safetensors":
        try:
            return _plain_names(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    found = _tensors(_unpickled(path))
    if not found:
        raise ValueError(f"{path} holds no named tensors; expected a state dict, alone or under `state_dict`")
    return _plain_names(found)


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a readable .npz file of arrays: {error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "weights_only" in reason or "Unsupported" in reason or "GLOBAL" in reason:
            line = next((part.strip() for part in reason.splitlines() if "GLOBAL" in part), "not only tensors")
            target = path.with_suffix(".safetensors").name
            text = _CONVERT.format(path=path, reason=line.split(" was not")[0], name=path.name, target=target)
            raise ValueError(text) from error
        raise ValueError(f"{path} cannot be read: {reason.splitlines()[0]}") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged or no checkpoint of torch's: {first}") from error


def _tensors(saved: Any) -> dict[str, Tensor]:
    if not isinstance(saved, Mapping):
        return {}
    for name in CONTAINERS:
        if isinstance(saved.get(name), Mapping):
            return _tensors(saved[name])
    return {str(name): value for name, value in saved.items() if isinstance(value, Tensor)}


def _plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        parts = name.split(".")
        short = ".".join(part for part in parts if f"{part}." not in WRAPPERS)
        if short in plain:
            raise ValueError(f"the file holds {short} twice, with and without a wrapper's prefix")
        plain[short] = value
    return plain
