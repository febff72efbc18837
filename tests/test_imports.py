"""Import directions: serving never needs torch or export; the core never needs serving or export."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVING = {"numpy", "PIL", "onnx", "onnxruntime", "safetensors", "click", "rich", "pyarrow", "scipy", "threadpoolctl"}
SERVING |= {"google"}  # protobuf, whose messages onnx gives
OPTIONAL = {"ray", "fsspec", "sklearn"}  # of extras, or of whoever calls, inside functions only
REMOTE = {"aiohttp", "fsspec"}  # of the extra `remote`, for `http_files`, which is imported inside a function
REPORT = SERVING | {"bokeh", "jinja2", "markupsafe", "umap"}  # of the extras `report` and `report-umap`
SHARED = (
    *("arrays", "bare", "budget", "cache", "children", "columns", "console", "decode", "draws", "faults", "files"),
    *("folders", "headers", "http_files", "images", "labels", "limits", "locations", "locks", "named", "names"),
    *("outputs", "parameters", "parquet", "parquet_runs", "remote", "remote_path", "run_format", "shard_files"),
    *("shards", "signals", "sources", "stamps", "streams", "strict_json", "surroundings", "tables", "tars"),
    *("telemetry", "text", "thrift", "walk", "zips"),
)
SERVE_MAY_USE = ("byol.serve", *(f"byol.{name}" for name in SHARED))
# Inside functions only: the first two start the commands, the third has bundles read by serving's strict reader, the
# fourth asks export before training whether it will do.
LAZY = {"cli.py", "demo.py", "pretrained.py", "exportable.py"}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted module, whether at module level) for each import of a file; `from a import b` counts as a.b and a."""
    tree = ast.parse(path.read_text(), str(path))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", id(node) not in inside) for alias in node.names]
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).glob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("path", [*files("serve"), *files("serve/report")], ids=lambda path: path.name)
def test_serving_uses_its_own_dependencies_only(path: Path) -> None:
    dependencies = REPORT if path.parent.name == "report" else SERVING
    for module, at_module_level in imports(path):
        top = module.partition(".")[0]
        if top == "byol":
            allowed = module == "byol.__version__" or any(within(module, package) for package in SERVE_MAY_USE)
            assert allowed, f"{path.name} imports {module}"
        else:
            optional = top in OPTIONAL and not at_module_level
            assert optional or top in dependencies or top in sys.stdlib_module_names, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", files("byol"), ids=lambda path: path.name)
def test_core_does_not_use_serving_or_export(path: Path) -> None:
    for module, at_module_level in imports(path):
        if within(module, "byol.serve") or within(module, "byol.export"):
            assert path.name in LAZY, f"{path.name} imports {module}"
            assert not at_module_level, f"{path.name} imports {module} at module level"


@pytest.mark.parametrize("name", [*(f"{name}.py" for name in SHARED), "cli.py", "__init__.py", "__main__.py"])
def test_shared_modules_are_torch_free(name: str) -> None:
    for module, at_module_level in imports(ROOT / "byol" / name):
        lazy = name in ("__init__.py", "named.py") and not at_module_level  # load_encoder; what fetches data sets
        top = module.partition(".")[0]
        optional = top in OPTIONAL and not at_module_level
        allowed = SERVING | {"byol"} | sys.stdlib_module_names | (REMOTE if name == "http_files.py" else set())
        assert lazy or optional or top in allowed, f"{name}: {module}"


def test_the_checks_above_can_fail() -> None:
    found = imports(ROOT / "serve" / "extract_command.py")
    assert ("byol.serve.encoder.Encoder", False) in found
    assert ("click", True) in found
