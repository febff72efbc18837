"""`byol doctor`: which devices ONNX Runtime can use on this machine, and why not."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

import click

from byol import __version__
from byol.console import show_json, show_table

WHEELS = ("onnxruntime", "onnxruntime-gpu")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")
def doctor(as_json: bool) -> None:
    """Say which devices ONNX Runtime can use here, and what is missing for the others.

    Exit status 1 when the installation is broken; a machine without a GPU is fine.
    """
    report = examine()
    if as_json:
        show_json(report)
    else:
        show_table(_rows(report))
    if report["problems"]:
        raise ValueError("; ".join(report["problems"]))


def examine() -> dict[str, Any]:
    """Versions, wheels, driver, libraries, and a session tried on each device."""
    import onnxruntime as ort

    from byol.serve import session

    wheels = {name: version for name in WHEELS if (version := _version(name))}
    results = {device: _try(device) for device in ("cpu", "cuda")}
    chosen = "cuda" if results["cuda"] == "ok" else "cpu"
    problems = []
    if len(wheels) > 1:
        problems.append(
            f"{' and '.join(wheels)} are both installed and overwrite each other; "
            f"run: pip uninstall {' '.join(wheels)}, then install one of them"
        )
    if results["cpu"] != "ok":
        problems.append(f"ONNX Runtime does not run on the CPU: {results['cpu']}")
    missing = session.missing_libraries()
    return {
        "byol": __version__,
        "python": sys.version.split()[0],
        "onnxruntime": ort.__version__,
        "wheels": wheels,
        "providers": ort.get_available_providers(),
        "driver": session.driver_problem() or "ok",
        "libraries": {name: "missing" if name in missing else "ok" for name in session.cuda_libraries()},
        "cpu": results["cpu"],
        "cuda": results["cuda"],
        "device": chosen,
        "reason": "CUDA runs" if chosen == "cuda" else results["cuda"],
        "problems": problems,
    }


def _try(device: str) -> str:
    """Run one convolution on a device: "ok", or why not. A convolution, because cuDNN is loaded only by one."""
    import numpy as np

    from byol.serve.session import open_session

    image = {"x": np.ones((1, 1, 8, 8), np.float32)}
    try:
        total = float(open_session(_convolution(), device, lambda _: image).run(image)[0].sum())
    except ValueError as error:
        return str(error)
    return "ok" if total == 36 * 9 else f"wrong result: {total} instead of {36 * 9}"


def _convolution() -> bytes:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "doctor",
        [value("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [value("y", TensorProto.FLOAT, [1, 1, 6, 6])],
        [helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _rows(report: dict[str, Any]) -> list[tuple[str, object]]:
    wheels = ", ".join(f"{name} {version}" for name, version in report["wheels"].items()) or "none found"
    libraries = [(name, state) for name, state in report["libraries"].items()]
    return [
        ("byol", report["byol"]),
        ("python", report["python"]),
        ("onnxruntime", f"{report['onnxruntime']} ({wheels})"),
        ("providers built in", ", ".join(report["providers"])),
        ("NVIDIA driver", report["driver"]),
        *libraries,
        ("cpu session", report["cpu"]),
        ("cuda session", report["cuda"]),
        ("--device auto", f"{report['device']} ({report['reason']})"),
    ]
