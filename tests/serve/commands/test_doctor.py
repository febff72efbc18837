"""`byol doctor`: versions, CPU and GPU as others report them, and an installation that is broken for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch

from byol import cli, machine
from byol.serve import Encoder
from byol.serve.commands import doctor
from tests.support.command_line import byol
from tests.support.small import REPOSITORY
from tests.support.tiny import write_tiny_bundle


def python(*words: str, path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter that finds what lies in `path` first."""
    search = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": search, **more}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)


def test_it_reports_and_agrees_with_the_encoder(tmp_path: Path) -> None:
    done = byol("doctor", "--json")
    report = json.loads(done.out)
    assert (done.code, done.err, report["problems"]) == (0, "", [])
    assert report["cpu"] == "ok"
    assert report["onnxruntime"] == ort.__version__
    for name in ("numpy", "onnx", "pillow", "pyarrow", "safetensors", "torch"):
        assert report["versions"][name] == metadata.version(name)
    assert Encoder(write_tiny_bundle(tmp_path / "bundle")).device == report["device"]
    shown = byol("doctor")
    assert shown.code == 0
    assert f"--device auto       {report['device']} ({report['reason']})" in shown.out
    assert f"{report['processor']['usable_cores']} of {os.cpu_count()} cores usable" in shown.out


def test_it_does_not_import_torch(tmp_path: Path) -> None:
    code = "import sys; from byol.serve.commands.doctor import examine; print(examine()['cpu'], 'torch' in sys.modules)"
    done = python("-c", code, path=tmp_path)
    assert done.stdout == "ok False\n", done.stderr


def install_in(folder: Path, *names: str) -> None:
    """The metadata of packages, as installers leave it."""
    for name in names:
        information = folder / f"{name.replace('-', '_')}-1.99.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.99.0\n")


def test_two_wheels_in_one_folder_are_an_error(tmp_path: Path) -> None:
    install_in(tmp_path, "onnxruntime", "onnxruntime-gpu")  # one of them is installed for real, elsewhere
    done = python("-m", "byol", "doctor", "--json", path=tmp_path)
    assert done.returncode == 1
    assert f"onnxruntime and onnxruntime-gpu are both installed in {tmp_path.resolve()} and" in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert report["wheels"] == dict.fromkeys(("onnxruntime", "onnxruntime-gpu"), "1.99.0")
    assert len(report["problems"]) == 1


def test_of_two_wheels_in_different_folders_it_names_the_one_that_is_imported(tmp_path: Path) -> None:
    """As with `pip install --target`, or a virtual environment on top of another: neither overwrites the other."""
    other = next(name for name in doctor.WHEELS if doctor._version(name) is None)
    install_in(tmp_path, other)  # its package lies behind the real one
    real = next(name for name in doctor.WHEELS if name != other)
    report = examined_in(tmp_path)
    assert (report["problems"], report["cpu"], set(report["wheels"])) == ([], "ok", {real, other})
    assert report["imported"] == f"{real} in {Path(ort.__file__).resolve().parent.parent}"
    first = tmp_path / "onnxruntime"
    first.mkdir()
    (first / "__init__.py").write_text("raise ImportError('of the other folder')")
    assert examined_in(tmp_path)["imported"] == f"{other} in {tmp_path.resolve()}"


def examined_in(folder: Path) -> dict[str, Any]:
    done = python("-m", "byol", "doctor", "--json", path=folder)
    assert "Traceback" not in done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("content", ["", "raise ImportError('libonnxruntime.so.1: cannot open shared object file')"])
def test_what_is_left_of_an_onnxruntime_is_an_error(tmp_path: Path, content: str) -> None:
    """Uninstalling one of two wheels takes the other's files with it."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(content)
    done = python("-m", "byol", "doctor", path=tmp_path)
    assert done.returncode == 1
    assert "Error: ONNX Runtime cannot be imported (" in done.stderr
    assert "Traceback" not in done.stderr
    assert "cores usable" in done.stdout


@pytest.mark.parametrize(
    ("broken", "error", "problem"),
    [
        ("onnx", Exception("gencode 6.31.1 runtime 5.29.0.\nSee more"), "gencode 6.31.1 runtime 5.29.0."),
        ("onnx", ImportError("cannot import name 'runtime_version'"), "cannot import name 'runtime_version'"),
        ("PIL", ImportError("libjpeg.so.8: no such file"), "libjpeg.so.8: no such file"),
    ],
)
def test_what_cannot_be_imported_is_named_and_not_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception, problem: str
) -> None:
    def fails(name: str) -> None:
        if name == broken:
            raise error

    monkeypatch.setattr(doctor, "import_module", fails)
    name, again = {"onnx": ("onnx", "onnx and protobuf"), "PIL": ("pillow", "pillow")}[broken]
    assert doctor.examine()["problems"] == [f"{name} cannot be imported ({problem}); reinstall {again}"]


def test_whatever_onnx_runtime_raises_is_a_problem_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(doctor, "_devices", fails)
    (problem,) = doctor.examine()["problems"]
    assert problem.startswith("ONNX Runtime fails (out of order); reinstall onnxruntime")


def test_what_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("scipy", *doctor.WHEELS) else "1")
    first, second = doctor.examine()["problems"]
    assert first == "not installed: scipy; in a checkout of byol, run: pip install ."
    assert second.startswith("ONNX Runtime is not installed; run: pip install onnxruntime or onnxruntime-gpu")


def test_a_build_under_another_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in doctor.WHEELS else "1")
    report = doctor.examine()
    assert (report["wheels"], report["cpu"], report["problems"]) == ({}, "ok", [])


def test_it_looks_for_every_dependency_and_so_does_the_file_for_the_cpu() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    both = [line.partition(";")[0] for line in project["dependencies"]]
    lines = [line for line in (REPOSITORY / "requirements-cpu.txt").read_text().splitlines() if line[0] != "#"]
    assert lines == [line for line in both if not line.startswith("onnxruntime-gpu")]
    assert {line.partition(">")[0] for line in lines} == {"click", "onnxruntime", *doctor.NEEDED}
    assert len(cli.NEEDED) == len(lines) - 1  # without click, which says it


# --------------------------------------------------------------------------------------------------------- hardware


@pytest.mark.skipif(not machine.CPUINFO.exists(), reason="only Linux says")
def test_cpu_features_are_those_torch_finds() -> None:
    found = torch.cpu.get_capabilities()  # reads the CPU's registers
    names = {"avx512f": "avx512_f"} | {"asimd": "neon", "asimdhp": "fp16_arith", "asimddp": "dot"}
    expected = {
        usual: found[names.get(linux, linux)]
        for linux, usual in machine.INSTRUCTION_SETS.items()
        if names.get(linux, linux) in found
    }
    assert expected
    sets = machine.instruction_sets()
    assert sets is not None
    assert {usual: usual in sets for usual in expected} == expected


@pytest.mark.parametrize(
    ("text", "model", "sets", "fast"),
    [
        (
            "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8481C\nflags\t\t: fpu avx2 avx512f avx512_bf16"
            " avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8\n",
            "Intel(R) Xeon(R) Platinum 8481C",
            ["AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "AVX-512 FP16", "AMX INT8", "AMX BF16"],
            True,
        ),
        ("model name\t: Intel(R) Core(TM) i5-4590\nflags\t\t: fpu avx avx2\n", None, ["AVX2"], False),
        (
            "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp sve i8mm bf16\nCPU part\t: 0xd40\n",
            os.uname().machine,
            ["NEON", "NEON FP16", "NEON dot product", "I8MM", "BF16", "SVE"],
            True,
        ),
        (None, os.uname().machine, None, False),
    ],
    ids=["amx", "avx2", "arm", "not Linux"],
)
def test_other_cpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    model: str | None,
    sets: list[str] | None,
    fast: bool,
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.processor", lambda: "")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert model is None or machine.cpu_model() == model
    assert (machine.instruction_sets(), machine.fast_int8()) == (sets, fast)


DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = 100 + number; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 100 ? "NVIDIA H100 80GB HBM3" : "NVIDIA L4", size);
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
"""
MANAGEMENT = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned size) { strncpy(version, "570.124.06", size); return 0; }
int nvmlShutdown(void) { return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="builds a stand-in for the driver")
def test_gpus_and_driver_as_the_driver_says(tmp_path: Path) -> None:
    for name, source in {"libcuda.so.1": DRIVER, "libnvidia-ml.so.1": MANAGEMENT}.items():
        command = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / name), "-x", "c", "-"]
        subprocess.run(command, input=source, text=True, check=True)
    code = (
        "from byol import machine as h;"
        "print([h.driver_problem(), h.driver_version(), h.driver_cuda_version(), h.gpu_names(), h.gpu_count()])"
    )
    done = python("-c", code, path=tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert done.stdout == "[None, '570.124.06', '12.8', ['NVIDIA H100 80GB HBM3', 'NVIDIA L4'], 2]\n", done.stderr


@pytest.mark.parametrize(
    ("first", "value", "says"),
    [
        ("import byol", None, "off"),
        ("import byol", "TRUE", "off"),
        ("import byol", "0", "on: ORT_DISABLE_TELEMETRY is '0' in the environment"),
        ("import byol", "", "on: ORT_DISABLE_TELEMETRY is '' in the environment"),
        ("import onnxruntime", None, "on: onnxruntime was imported before byol"),
        ("import onnxruntime", "1", "off"),
    ],
)
def test_it_says_whether_onnx_runtime_reports_its_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, value: str | None, says: str
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    (tmp_path / "onnxruntime.py").write_text("")  # imported, and nothing is sent from a test
    code = f"{first}; from byol.telemetry import state; print(state())"
    done = python("-c", code, path=tmp_path, **({} if value is None else {"ORT_DISABLE_TELEMETRY": value}))
    assert done.stdout.startswith(says), done.stderr
    assert byol("doctor").out.count("telemetry") == 1
