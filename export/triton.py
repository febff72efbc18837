"""A model repository for NVIDIA's Triton inference server: each graph of a bundle as a model with its configuration."""

from __future__ import annotations

from pathlib import Path

from byol.bundle.folder import Bundle
from byol.bundle.manifest import ENCODER_WEIGHTS, GRAPHS, graph_interface
from byol.files.atomic import atomic_folder, remove
from byol.files.locks import LOCK
from byol.files.places import require_folder_place

CONFIG = "config.pbtxt"
MAX_BATCH_SIZE = 256
QUEUE_DELAY = 2000  # microseconds that a request may wait for others to share its batch
TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}

_OURS = "# Written by byol"  # how a configuration begins; models that begin otherwise are somebody else's
_CONFIG = """\
{ours} {version} from the bundle {digest}
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
{ends}
dynamic_batching {{
  max_queue_delay_microseconds: {delay}
}}
{warmup}"""

_END = """\
{kind} {{
  name: "{name}"
  data_type: {type}
  dims: {dims}
}}"""

# CUDA prepares itself for a shape at its first batch: better before the first request than in it.
_WARMUP = """\
model_warmup {{
  name: "batch of {batch}"
  batch_size: {batch}
  inputs {{
    key: "{name}"
    value {{
      data_type: {type}
      dims: {dims}
      zero_data: true
    }}
  }}
}}
"""


def require_repository(out: Path) -> None:
    """Raise `ValueError` when `out` cannot be a model repository, or has a model of our name that is not ours."""
    if not out.exists():
        require_folder_place(out)
        return
    if not out.is_dir() or (any(out.iterdir()) and not list(out.glob(f"*/{CONFIG}"))):
        raise ValueError(f"{out} exists and is not a model repository; choose another --triton")
    for name in map(_model_name, GRAPHS):
        if (out / name).exists() and not _is_ours(out / name):
            raise ValueError(f"{out} has a model {name} that byol did not write; choose another --triton")


def write_repository(bundle: Path, out: Path) -> list[str]:
    """Write the models of a bundle into the model repository `out`, in place of an older bundle's; their names.

    Other models of the repository stay. Raises `ValueError`: see `require_repository`.
    """
    require_repository(out)
    opened = Bundle.open(bundle)
    names = [_model_name(graph) for graph in opened.manifest.graphs]
    for graph, name in zip(opened.manifest.graphs, names, strict=True):
        model = opened.model(graph)
        with atomic_folder(out / name, CONFIG) as folder:
            (folder / "1").mkdir()
            (folder / CONFIG).write_text(model_config(opened, graph, name))
            for file, content in {"model.onnx": model.graph, **model.weights}.items():
                (folder / "1" / file).write_bytes(content)
    for name in set(map(_model_name, GRAPHS)) - set(names):
        if (out / name).exists():
            remove(out / name)
    return names


def _model_name(graph: str) -> str:
    return graph.removesuffix(".onnx").replace(".", "_").replace("-", "_")


def _is_ours(model: Path) -> bool:
    """Whether byol wrote the model, and nothing was put beside it: a further version, say."""
    config = model / CONFIG
    if not config.is_file() or not config.read_bytes().startswith(_OURS.encode()):
        return False
    found = {str(path.relative_to(model)) for path in model.rglob("*")} - {LOCK}
    return found <= {CONFIG, "1", "1/model.onnx", f"1/{ENCODER_WEIGHTS}"}


def model_config(bundle: Bundle, graph: str, name: str) -> str:
    """`config.pbtxt` of one graph: its interface, dynamic batching, warm-up at batch sizes 1 and the largest."""
    size = bundle.manifest.image_size
    ends, warmup = [], ""
    for number, (end, kind, shape) in enumerate(graph_interface(bundle.manifest, graph)):
        dims = [dim if isinstance(dim, int) else -1 for dim in shape]
        ends.append(_END.format(kind="output" if number else "input", name=end, type=TYPES[kind], dims=dims))
        if number == 0:
            fixed = [dim if dim > 0 else size for dim in dims]
            batches = (1, MAX_BATCH_SIZE)
            warmup = "".join(_WARMUP.format(batch=b, name=end, type=TYPES[kind], dims=fixed) for b in batches)
    made = {"ours": _OURS, "version": bundle.manifest.byol_version, "digest": bundle.digest}
    return _CONFIG.format(
        **made, name=name, max_batch_size=MAX_BATCH_SIZE, ends="\n".join(ends), delay=QUEUE_DELAY, warmup=warmup
    )
