"""The online encoder inside a checkpoint of another toolkit: found by its layout, taken whole, nothing guessed.

Layouts are those of lightly's documented BYOL (1.4 and newer), solo-learn's LightningModules, lucidrains' byol-pytorch,
SwAV and VISSL, plain state dicts of torchvision and timm, and DeepMind's released BYOL (see `haiku.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from byol.bundle.manifest import Origin
from byol.encoders import TIMM
from byol.encoders.build import encoder_shapes, encoder_with
from byol.export.foreign import haiku
from byol.export.foreign.files import CONTAINERS, read_models, without_wrappers
from byol.export.foreign.input import Input, input_of
from byol.files.regular import sha256_of
from byol.text import on_one_line, printable
from byol.training.checkpoint import finite


@dataclass(frozen=True)
class Layout:
    """How a toolkit names things: prefixes of the online encoder, and of what is known and left behind."""

    online: tuple[str, ...]
    left: tuple[str, ...]


LAYOUTS = {
    "torchvision": Layout(("",), ("fc.",)),
    "timm": Layout(("",), ()),  # but for its classifier, which has another name in each family
    "lightly": Layout(
        ("backbone.",),
        (
            *("projection_head.", "prediction_head.", "online_classifier.", "criterion."),
            *("backbone_momentum.", "projection_head_momentum.", "momentum_backbone.", "momentum_projection_head."),
            *("teacher_backbone.", "teacher_projection_head.", "student_projection_head.", "student_prediction_head."),
        ),
    ),
    "solo-learn": Layout(
        ("backbone.", "encoder.", ""),  # the last: a backbone that was taken out of its checkpoint
        (
            *("projector.", "predictor.", "classifier.", "knn.", "backbone.fc.", "encoder.fc.", "fc."),
            *("momentum_backbone.", "momentum_encoder.", "momentum_projector.", "momentum_classifier."),
        ),
    ),
    "byol-pytorch": Layout(
        ("online_encoder.net.",),
        (
            *("net.", "online_encoder.projector.", "online_predictor.", "target_encoder.", "augment1.", "augment2."),
            "online_encoder.net.fc.",
        ),
    ),
    "swav": Layout(("",), ("projection_head.", "prototypes.")),
    "vissl": Layout(("_feature_blocks.",), ()),  # its heads lie in another part of the file
    "deepmind": Layout(
        (haiku.ENCODER,),
        (
            *("online_params.projector.", "online_params.predictor.", "online_params.classifier."),
            *("online_state.projector.", "online_state.predictor.", "target_params.", "target_state.", "opt_state."),
        ),
    ),
}
TOOLKITS = ("auto", *LAYOUTS)

# Children of a ResNet in an nn.Sequential, as lightly's examples cut one up: torchvision's, and lightly's own ResNet
# for CIFAR. That one has its first ReLU in `forward`, so the Sequential of its children, which was trained, has none.
_TORCHVISION_CUT = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_LIGHTLY_CUT = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


Split = tuple[dict[str, Tensor], dict[str, Tensor]]  # what is taken, under the encoder's names, and what is left


@dataclass(frozen=True)
class Weights:
    """An encoder in eval mode with foreign weights, how to rebuild and feed it, and what was done.

    `taken`, `left` count tensors by prefix.
    """

    encoder: nn.Module
    arch: str
    stem: str
    input: Input
    origin: Origin
    taken: dict[str, int]
    left: dict[str, int]


def foreign_encoder(path: Path, toolkit: str, arch: str, image_size: int | None, prefix: str | None = None) -> Weights:
    """The online encoder in a foreign checkpoint, as architecture `arch` (a torchvision ResNet or `timm:NAME`).

    `toolkit`: one of `TOOLKITS`; auto tries all. `image_size`: S, None for the usual one. `prefix`: take exactly the
    tensors under it instead, of which the toolkit then says only how the first layer pads; it may also be, or begin
    with, one of several models in the file. timm's NAME may have the tag of weights, whose input it then is. Raises
    `ValueError` when the file cannot be read, when a tensor is unexplained, when more than one encoder, or first layer,
    could be meant, when the weights do not fit the architecture, or are not finite.
    """
    plain = _untagged(arch)
    given = (prefix or "").strip(".")
    tensors, others, prefix = _one_model(path, read_models(path), given)
    tensors = haiku.torch_names(tensors)
    candidates = _candidates(tensors, toolkit, plain)
    if prefix:
        own, left = _under(path, tensors, prefix, plain)
        candidates = dict.fromkeys(_writers(candidates, own) if toolkit == "auto" else [toolkit], (own, left))
    elif toolkit == "auto" and [*candidates] == ["solo-learn"]:  # names that many a module has
        part = next(part for part in ("backbone", "encoder") if any(name.startswith(f"{part}.") for name in tensors))
        choice = f"torchvision --prefix {'.'.join(filter(None, (given, part)))}"
        candidates[choice] = candidates["solo-learn"]
    found: dict[str, Weights] = {}
    problems: dict[str, str] = {}
    for name, (own, left) in candidates.items():
        try:
            found[name] = _fit(path, f"prefix {prefix}" if prefix else name, own, left, arch, image_size, name)
        except ValueError as error:
            problems[name] = str(error)
    if not found:
        raise ValueError(_refusal(path, tensors, toolkit, plain, problems))
    _require_one_stem(path, found)
    weights = next(iter(found.values()))  # layouts that agree on all names took the same tensors
    return replace(weights, left=weights.left | others)


def _writers(candidates: dict[str, Split], own: dict[str, Tensor]) -> list[str]:
    """Who may have written what lies under a prefix; of unknown names, both ways to pad a CIFAR stem."""
    writers = [name for name, (other, _) in candidates.items() if other.keys() == own.keys()]
    return writers if set(writers) - {"solo-learn"} else ["torchvision", "solo-learn"]


def _require_one_stem(path: Path, found: dict[str, Weights]) -> None:
    """Raise `ValueError` when the file fits several toolkits whose first layers compute different things."""
    if len({weights.stem for weights in found.values()}) > 1:
        toolkits = " or ".join(f"--from {name} ({weights.stem} stem)" for name, weights in found.items())
        raise ValueError(f"{path} may be of several toolkits, whose first layers differ; say which: {toolkits}")


def _one_model(
    path: Path, models: dict[str, dict[str, Tensor]], prefix: str
) -> tuple[dict[str, Tensor], dict[str, int], str]:
    """The model that is meant, how many tensors the others have, and what of the prefix is not its name."""
    part, _, rest = prefix.strip(".").partition(".")
    named = part in models and part != ""
    name = part if named else next((usual for usual in CONTAINERS if usual in models), "")
    others = {key: len(found) for key, found in models.items() if key != name}
    if name not in models:
        hint = f"; it holds {_listed(others)}: name one, --prefix NAME" if others else ""
        raise ValueError(f"{path} holds no named tensors; a state dict was expected{hint}")
    twins = [key for key in others if models[key].keys() & models[name].keys()]
    if twins and not named:
        raise ValueError(
            f"{path} holds the model more than once, as {name or 'its own tensors'} and {', '.join(twins)}; "
            f"choose one: --prefix {name or twins[0]}"
        )
    return models[name], others, without_wrappers(rest if named else prefix.strip("."))


def _candidates(tensors: dict[str, Tensor], toolkit: str, arch: str) -> dict[str, Split]:
    """By layout, the tensors it takes (under the encoder's names) and those it leaves, if that explains all of them."""
    candidates = {}
    for name, layout in LAYOUTS.items():
        if toolkit not in ("auto", name) or (toolkit == "auto" and not _is_plain_enough(name, tensors, arch)):
            continue
        for prefix in layout.online:
            if name == "solo-learn" and not prefix and not (_is_torchvisions(tensors, arch) and _is_bare(tensors)):
                continue
            known = _classifier(tensors, arch) if name == "timm" else set()
            left = {n: v for n, v in tensors.items() if n.startswith(layout.left) or n in known}
            own = {n: v for n, v in tensors.items() if n not in left and n.startswith(prefix)}
            if own and len(own) + len(left) == len(tensors):
                candidates[name] = ({n.removeprefix(prefix): v for n, v in own.items()}, left)
                break
    return candidates


def _under(path: Path, tensors: dict[str, Tensor], prefix: str, arch: str) -> Split:
    """What lies under a prefix, but for a classifier at its end, and the rest."""
    inside = {name: name.removeprefix(f"{prefix}.") for name in tensors if name.startswith(f"{prefix}.")}
    classifier = _classifier(inside.values(), arch)
    own = {name: short for name, short in inside.items() if short not in classifier}
    if not own:
        raise ValueError(f"{path} holds nothing under {prefix}.*; it holds {_listed(_counts(tensors))}")
    left = {name: value for name, value in tensors.items() if name not in own}
    return {short: tensors[name] for name, short in own.items()}, left


def _classifier(names: Iterable[str], arch: str) -> set[str]:
    """Those of a plain model's tensors that are its classifier."""
    if not _is_timm(arch):
        return {name for name in names if name.startswith(LAYOUTS["torchvision"].left)}
    from byol.encoders.timm_models import classifier_tensors

    return classifier_tensors(arch.removeprefix(TIMM))


def _is_plain_enough(layout: str, tensors: dict[str, Tensor], arch: str) -> bool:
    """Any names fit a layout without prefix; so it is tried only on what begins like a model of that library."""
    if layout == "timm":
        return _is_timm(arch)
    if layout not in ("torchvision", "swav"):
        return True
    fits = layout == "torchvision" or any(name.startswith(LAYOUTS[layout].left) for name in tensors)
    return fits and _is_torchvisions(tensors, arch)


def _is_torchvisions(tensors: dict[str, Tensor], arch: str) -> bool:
    return not _is_timm(arch) and "conv1.weight" in tensors


def _is_bare(tensors: dict[str, Tensor]) -> bool:
    return all(name.startswith((*(f"{part}." for part in _TORCHVISION_CUT), "fc.")) for name in tensors)


def _is_timm(arch: str) -> bool:
    return arch.startswith(TIMM)


def _untagged(arch: str) -> str:
    """The architecture without the tag of its weights, which timm writes behind a point."""
    return arch.partition(".")[0] if _is_timm(arch) else arch


def _fit(
    path: Path,
    layout: str,
    own: dict[str, Tensor],
    left: dict[str, Tensor],
    arch: str,
    image_size: int | None,
    writer: str,
) -> Weights:
    """What was read as `layout` (a toolkit or a prefix), in an encoder with the first layers of toolkit `writer`."""
    given = input_of("timm" if _is_timm(arch) and layout not in TOOLKITS else layout, arch, image_size)
    arch, size = _untagged(arch), given.size
    named, cut = _named({name: v.float() if v.is_floating_point() else v for name, v in own.items()})
    stem = "imagenet" if _is_timm(arch) else _stem(writer, named, cut)
    counters = {name for name in encoder_shapes(arch, stem, size) if name.endswith("num_batches_tracked")}
    if not counters & named.keys():  # torch before 0.4.1 had none, and some drop them; they say nothing here
        named |= {name: torch.zeros((), dtype=torch.int64) for name in counters}
    encoder = encoder_with(arch, stem, size, named, f"{path}, read as {layout},")
    if not finite(named):
        raise ValueError(f"{path}: the encoder's weights are not all finite")
    origin = Origin(on_one_line(layout), printable(path.name), sha256_of(path))  # in plain characters, as manifests are
    return Weights(encoder, arch, stem, given, origin, _counts(own), _counts(left))


def _stem(writer: str, named: dict[str, Tensor], cut: tuple[str, ...]) -> str:
    """The first layers, of which the weights show the shape only."""
    if writer == "deepmind":
        return "imagenet-same"
    first = named.get("conv1.weight")
    if first is None or first.shape[2:] != (3, 3):
        return "imagenet"
    if cut == _LIGHTLY_CUT:
        return "cifar-no-relu"
    return "cifar-padded" if writer == "solo-learn" and not cut else "cifar"  # it cuts no encoder up


def _named(own: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Under torchvision's names, and which cut it was: a Sequential's numbers become names, shortcuts downsample."""
    parts = {name: name.partition(".") for name in own}
    if not own or not all(number.isdecimal() for number, _, _ in parts.values()):
        return own, ()
    highest = max(int(number) for number, _, _ in parts.values())
    cut = next((names for names in (_TORCHVISION_CUT, _LIGHTLY_CUT) if len(names) == highest + 1), None)
    if cut is None:
        return own, ()
    named = {
        f"{cut[int(number)]}.{rest}".replace(".shortcut.", ".downsample."): own[name]
        for name, (number, _, rest) in parts.items()
    }
    return named, cut


def _counts(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Tensors by the first part of their name."""
    return dict(sorted(Counter(name.partition(".")[0] for name in tensors).items()))


def _refusal(path: Path, tensors: dict[str, Tensor], toolkit: str, arch: str, problems: dict[str, str]) -> str:
    """What to say when no layout fits: the best reason, and what there is to choose from."""
    if problems:
        return next(iter(problems.values()))
    return (
        f"{path} does not look like {'any known toolkit' if toolkit == 'auto' else toolkit} with {arch}: it holds "
        f"{_listed(_counts(tensors))}. Name the part that is the online encoder: --prefix PART."
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name or 'tensors'}.* ({count})" for name, count in counts.items())
