"""What CUDA needs: names of libraries, and the folders in which they are found."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort
import pytest

from byol.serve.providers import cuda


@pytest.fixture(autouse=True)
def preload_anew() -> Iterator[None]:
    cuda.preload.cache_clear()
    yield
    cuda.preload.cache_clear()


def test_library_names_follow_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "cuda_version", "12.8", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cuda.cuda_libraries() == [
        "libcudart.so.12",
        "libcublas.so.12",
        "libcublasLt.so.12",
        "libcurand.so.10",
        "libcufft.so.11",
        "libcudnn.so.9",
    ]
    monkeypatch.setattr(ort, "cuda_version", "")
    assert cuda.cuda_libraries() == []


def test_what_preloading_prints_stays_off_stdout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcurand.so.10"))
    monkeypatch.setattr(cuda, "_library_folders", list)
    assert cuda.preload() == "Failed to load libcurand.so.10\n"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("place", "library"),
    [
        ("cudnn/lib", "libcudnn.so.9"),
        ("cu13/lib", "libcurand.so.10"),
        ("curand/lib", "libcurand.so.10"),
        ("cudnn/bin", "cudnn64_9.dll"),
        ("cu13/bin/x86_64", "curand64_10.dll"),
    ],
)
def test_libraries_are_looked_for_in_every_folder_of_the_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, library: str
) -> None:
    """As with `pip install --target` or `--user`: ONNX Runtime itself looks beside its own package only."""
    package, loaded = tmp_path / "site" / "nvidia" / place, set[Path]()
    package.mkdir(parents=True)
    (package / library).touch()
    (tmp_path / "site" / "nvidia" / "cublas" / "lib").mkdir(parents=True)  # holds nothing that is missing
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "nothing"), str(tmp_path / "site")])
    monkeypatch.setattr(cuda, "cuda_libraries", lambda: ["libcudart.so.13", library])
    monkeypatch.setattr(cuda, "_loads", lambda name: name != library or package in loaded)
    monkeypatch.setattr(ort, "preload_dlls", lambda directory="beside": loaded.add(Path(directory)))
    assert cuda.missing_libraries() == []
    assert loaded == {Path("beside"), package}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what the process has mapped")
@pytest.mark.skipif(not getattr(ort, "cuda_version", ""), reason="needs a build of ONNX Runtime for CUDA")
def test_onnx_runtime_loads_a_library_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    any_library = next(name for name in sorted(mapped) if "/libz" in name or "/libbz2" in name or "/libm" in name)
    name = cuda.cuda_libraries()[0]
    library = tmp_path / "site" / "nvidia" / "cuda_runtime" / "lib" / name
    library.parent.mkdir(parents=True)
    shutil.copy(any_library, library)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    monkeypatch.setattr(cuda, "_loads", lambda library: library != name)  # as where it is nowhere else
    cuda.preload()
    assert str(library) in Path("/proc/self/maps").read_text()
