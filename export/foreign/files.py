"""Tensors out of checkpoint files that other toolkits wrote, without running code from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from byol.export.foreign.pickles import MoreThanTensors
from byol.export.foreign.torch_file import Program, require_checkpoint
from byol.files.npz import open_arrays
from byol.files.regular import open_regular
from byol.text import Recipe, first_line, on_one_line, printable, reason_of

# Where toolkits keep the weights inside what they save; the last three are VISSL's, one in the other.
CONTAINERS = ("state_dict", "model", "model_state_dict", "module", "net", "classy_state_dict", "base_model", "trunk")
DEEPEST = 8  # containers in containers; one may hold itself
WRAPPERS = ("module.", "_orig_mod.")

_CONVERT = """\
{path} holds more than tensors ({reason}), and reading that would run code from it. In the environment that wrote it, \
and only if you trust it, convert it:
  import torch
  from safetensors.torch import save_file
  saved = {read}
  while isinstance(saved, dict) and (part := next((name for name in {containers} if name in saved), None)):
    saved = saved[part]
  weights = {{}}
  for name, part in (saved if isinstance(saved, dict) else saved.state_dict()).items():
    part = part.state_dict() if isinstance(part, torch.nn.Module) else part
    for key, value in part.items() if isinstance(part, dict) else [('', part)]:
      if isinstance(value, torch.Tensor):
        weights[f'{{name}}.{{key}}'.rstrip('.')] = value.clone().contiguous()
  save_file(weights, {target!r})
and export {target}"""
_READ = "torch.load({name!r}, map_location='cpu', weights_only=False)"
_READ_SCRIPT = "torch.jit.load({name!r}, map_location='cpu')"


def read_models(path: Path) -> dict[str, dict[str, Tensor]]:
    """The named tensors of a `.safetensors` or `.npz` file, or of what `torch.save` wrote (with `weights_only=True`).

    By model: "" for tensors that lie in no part, else the part's name (`state_dict`, `state_dict_ema`, ...). Wrappers'
    prefixes are taken off the names. Raises `ValueError` for a damaged file and for one that needs code to be read (the
    message says how to convert it).
    """
    if not path.is_file():
        raise ValueError(f"{path} is a folder; name a checkpoint file" if path.is_dir() else f"{path} does not exist")
    if path.suffix.lower() == ".onnx":
        raise ValueError(f"{printable(path)} is an ONNX graph; name the checkpoint that it was made from")
    if path.suffix == ".npz":
        return {"": _arrays(path)}
    if path.suffix == ".safetensors":
        try:
            return {"": _plain_names(load_file(path))}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    return _models(_unpickled(path))


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with open_regular(path) as stream, open_arrays(stream) as arrays:
            return {name: torch.from_numpy(arrays.read(name)) for name in arrays.names}
    except (OSError, ValueError, TypeError) as error:  # torch has no text
        raise ValueError(f"{printable(path)} is not a readable .npz file of arrays: {reason_of(error)}") from error


def _unpickled(path: Path) -> Any:
    try:
        with open_regular(path) as stream:
            require_checkpoint(stream)
            stream.seek(0)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Program as error:
        raise Recipe(_conversion(path, "a TorchScript program", _READ_SCRIPT)) from error
    except MoreThanTensors as error:
        raise Recipe(_conversion(path, on_one_line(str(error)), _READ)) from error
    except pickle.UnpicklingError as error:  # what torch refuses beyond that
        line = next((text.strip() for text in str(error).splitlines() if "GLOBAL" in text), "not only tensors")
        raise Recipe(_conversion(path, on_one_line(line.split(" was not")[0]), _READ)) from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"{printable(path)} is damaged or not a torch checkpoint: {first_line(error)}") from error


def _conversion(path: Path, reason: str, read: str) -> str:
    target = path.with_suffix(".safetensors").name
    read = read.format(name=path.name)
    return _CONVERT.format(path=printable(path), reason=reason, read=read, containers=CONTAINERS, target=target)


def _models(saved: Any, depth: int = 0) -> dict[str, dict[str, Tensor]]:
    if not isinstance(saved, Mapping) or depth > DEEPEST:
        return {}
    parts = {"": saved} | {str(key): value for key, value in saved.items() if isinstance(value, Mapping)}
    models = {}
    for name, part in parts.items():
        tensors = {str(key): value for key, value in part.items() if isinstance(value, Tensor)}
        if tensors:
            models[name] = _plain_names(tensors)
        elif name in CONTAINERS:
            models |= _models(part, depth + 1)  # a container in a container
    return models


def without_wrappers(name: str) -> str:
    """A tensor's name, or the beginning of one, without what DistributedDataParallel and torch.compile put into it."""
    return ".".join(part for part in name.split(".") if f"{part}." not in WRAPPERS)


def _plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        short = without_wrappers(name)
        if short in plain:
            raise ValueError(f"the file holds {short} twice, with and without a wrapper's prefix")
        plain[short] = value
    return plain
