"""`byol doctor`: why byol does not run here, or runs slowly."""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from byol import __version__, machine, telemetry
from byol.console import show_json, show_table
from byol.text import first_line, install, printable

WHEELS = ("onnxruntime", "onnxruntime-gpu")
NEEDED = ("numpy", "onnx", "pillow", "protobuf", "pyarrow", "rich", "safetensors", "scipy", "threadpoolctl")
MODULES = {"pillow": "PIL", "protobuf": "google.protobuf"}  # not called as their packages are
# With torch, whose CUDA libraries ONNX Runtime may find. Read from metadata, not imported.
PACKAGES = (*NEEDED, "torch")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")
def doctor(as_json: bool) -> None:
    """Show which devices ONNX Runtime can use here, and what the others lack.

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
    """Versions, wheels, CPU, driver and, if ONNX Runtime can be imported, a trial session on each device."""
    from byol.machine import usable_cores

    wheels = {name: version for name in WHEELS if (version := _version(name))}
    folders = {name: _folders(name) for name in wheels}
    report: dict[str, Any] = {
        "byol": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "wheels": wheels,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "processor": {
            "model": machine.cpu_model(),
            "usable_cores": usable_cores(),
            "all_cores": os.cpu_count(),
            "instruction_sets": machine.instruction_sets(),
            "fast_int8": machine.fast_int8(),
        },
        "gpus": machine.gpu_names(),
        "driver": machine.driver_problem() or "ok",
        "driver_version": machine.driver_version(),
        "driver_cuda": machine.driver_cuda_version(),
        "telemetry": telemetry.state(),
    }
    if len(wheels) > 1:
        report["imported"] = _imported(folders)
    problems = _lacks(wheels, folders) or _broken()
    try:
        report |= {} if problems else _devices()
    except Exception as error:  # a damaged package raises anything
        what = "cannot be imported" if isinstance(error, ImportError | AttributeError) else "fails"  # an empty folder
        problems.append(f"ONNX Runtime {what} ({first_line(error)}); reinstall {' or '.join(wheels or WHEELS)}")
    if report.get("cpu", "ok") != "ok":
        problems.append(f"ONNX Runtime does not run on the CPU: {report['cpu']}")
    return report | {"problems": problems}


def _lacks(wheels: dict[str, str], folders: dict[str, set[Path]]) -> list[str]:
    """What is wrong with the installed packages: some are missing, ONNX Runtime is not there or twice in one folder."""
    missing, either = [name for name in NEEDED if not _version(name)], " or ".join(WHEELS)
    problems = [f"not installed: {', '.join(missing)}; {install()}"] if missing else []
    if len(wheels) > 1 and (shared := set.intersection(*folders.values())):
        problems.append(
            f"{' and '.join(wheels)} are both installed in {printable(min(shared))} and overwrite each other; run: "
            f"pip uninstall {' '.join(wheels)}, then pip install {either} (the latter for NVIDIA GPUs)"
        )
    if not wheels and find_spec("onnxruntime") is None:
        problems.append(f"ONNX Runtime is not installed; run: pip install {either} (the latter for NVIDIA GPUs)")
    return problems


def _broken() -> list[str]:
    """Which installed package cannot be imported, tried by itself: else ONNX Runtime would be blamed for it."""
    for name in NEEDED:
        try:
            import_module(MODULES.get(name, name))
        except Exception as error:  # protobuf's own kind, where onnx was made by a newer one than is installed
            together = "onnx and protobuf" if name == "onnx" else name
            return [f"{name} cannot be imported ({first_line(error)}); reinstall {together}"]
    return []


def _folders(name: str) -> set[Path]:
    """Where a package is installed: in one folder of the import path, or in several."""
    return {Path(str(found.locate_file(""))).resolve() for found in metadata.distributions(name=name)}


def _imported(folders: dict[str, set[Path]]) -> str:
    """Which of two ONNX Runtimes in different folders Python takes: the first one on its path."""
    found = find_spec("onnxruntime")
    if found is None or found.origin is None:
        return "none"
    folder = Path(found.origin).resolve().parent.parent
    named = " and ".join(name for name, places in folders.items() if folder in places)
    return f"{named or 'onnxruntime'} in {printable(folder)}"


def _devices() -> dict[str, Any]:
    """What ONNX Runtime reports, and whether it runs. Raises anything when it is broken."""
    import onnxruntime as ort

    from byol.serve.providers import cuda
    from byol.serve.providers.installed import plugin_packages

    version, providers = ort.__version__, ort.get_available_providers()
    missing = cuda.missing_libraries()
    results = {device: _try(device) for device in ("cpu", "cuda")}
    chosen = "cuda" if results["cuda"] == "ok" else "cpu"
    return {
        "onnxruntime": version,
        "onnxruntime_cuda": getattr(ort, "cuda_version", None) or None,
        "providers": providers,
        "libraries": {name: "missing" if name in missing else "ok" for name in cuda.cuda_libraries()},
        **results,
        "plugins": {name: _plugin(name) for name in plugin_packages()},
        "device": chosen,
        "reason": "CUDA runs" if chosen == "cuda" else machine.driver_problem() or results["cuda"],
    }


def _plugin(name: str) -> dict[str, Any]:
    """An installed plug-in: its package, what it offers to run on, and whether a trial session runs."""
    from byol.serve.errors import DeviceError
    from byol.serve.providers.plugins import describe, hardware

    try:
        package, offered = hardware(name)
    except DeviceError as error:
        return {"devices": [], "session": str(error)}
    return {"package": package, "devices": [describe(device) for device in offered], "session": _try(name)}


def _try(device: str) -> str:
    """Run one convolution on a device: "ok", or why not. Only a convolution loads cuDNN."""
    import numpy as np

    from byol.serve.session import open_session

    image = {"x": np.ones((1, 1, 8, 8), np.float32)}
    try:
        total = float(open_session(convolution(), device, lambda _: image).run(image)[0].sum())
    except ValueError as error:
        return str(error)
    return "ok" if total == 36 * 9 else f"wrong result: {total} instead of {36 * 9}"


def convolution() -> bytes:
    """A graph of one convolution, `x` float32 (1, 1, 8, 8) to `y` (1, 1, 6, 6): ones give 36 nines."""
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
    processor, sets = report["processor"], report["processor"]["instruction_sets"]
    rows: list[tuple[str, object]] = [
        ("byol", report["byol"]),
        ("python", report["python"]),
        ("system", report["system"]),
        ("wheels", _versions(report["wheels"]) or "none found"),
        *([("of these, imported", report["imported"])] if "imported" in report else []),
        ("other packages", _versions(report["versions"])),
        ("CPU", f"{processor['model']}, {processor['usable_cores']} of {processor['all_cores']} cores usable"),
        ("instruction sets", "not known on this system" if sets is None else ", ".join(sets) or "none that matter"),
        ("int8 on the CPU", "fast" if processor["fast_int8"] else "not known to be fast: auto takes fp32"),
        ("NVIDIA driver", _driver(report)),
        *((f"GPU {number}", name) for number, name in enumerate(report["gpus"])),
    ]
    return rows + _runtime_rows(report) if "onnxruntime" in report else rows


def _runtime_rows(report: dict[str, Any]) -> list[tuple[str, object]]:
    cuda = report["onnxruntime_cuda"]
    return [
        ("onnxruntime", f"{report['onnxruntime']}{f', built for CUDA {cuda}' if cuda else ''}"),
        ("telemetry", report["telemetry"]),
        ("providers built in", ", ".join(report["providers"])),
        *report["libraries"].items(),
        ("cpu session", report["cpu"]),
        ("cuda session", report["cuda"]),
        *_plugin_rows(report["plugins"]),
        ("--device auto", f"{report['device']} ({report['reason']})"),
    ]


def _plugin_rows(plugins: dict[str, dict[str, Any]]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, plugin in plugins.items():
        if plugin["devices"]:
            rows.append((f"{name} runs on", f"{', '.join(plugin['devices'])} ({plugin['package']})"))
        rows.append((f"{name} session", plugin["session"]))
    return rows


def _driver(report: dict[str, Any]) -> str:
    found = [report["driver_version"], report["driver_cuda"] and f"CUDA up to {report['driver_cuda']}"]
    return ", ".join([report["driver"], *filter(None, found)])


def _versions(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())
