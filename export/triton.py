"""A model repository for NVIDIA's Triton inference server: each graph of a bundle as a model with its configuration."""

from __future__ import annotations

from pathlib import Path

from byol.files import atomic_folder
from byol.serve.bundle import Bundle
from byol.serve.pipeline import graph_interface

MAX_BATCH_SIZE = 256
QUEUE_DELAY = 2000  # microseconds that a request may wait for others to share its batch
TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}

_CONFIG = """\
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


def write_repository(bundle: Path, out: Path) -> list[str]:
    """Write the model repository of a bundle to the folder `out`, replacing an older one; the models' names.

    Raises `ValueError` when `out` holds something else.
    """
    if out.exists() and not list(out.glob("*/config.pbtxt")) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no model repository; choose another --triton")
    opened = Bundle.open(bundle)
    out.parent.mkdir(parents=True, exist_ok=True)
    names = []
    with atomic_folder(out) as folder:
        for graph in opened.manifest.graphs:
            name = graph.removesuffix(".onnx").replace(".", "_").replace("-", "_")
            (folder / name / "1").mkdir(parents=True)
            (folder / name / "config.pbtxt").write_text(model_config(opened, graph, name))
            model = opened.model(graph)
            for file, content in {"model.onnx": model.graph, **model.weights}.items():
                (folder / name / "1" / file).write_bytes(content)
            names.append(name)
    return names


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
    return _CONFIG.format(
        name=name, max_batch_size=MAX_BATCH_SIZE, ends="\n".join(ends), delay=QUEUE_DELAY, warmup=warmup
    )
