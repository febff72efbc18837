"""Import directions: what each package may stand on, by layer; serving and all below it never need torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module imports from its own layer and from those above it in this list, never from those below. A package stands for
# all that lies in it. `DOORS` and what functions import are apart.
LAYERS = (
    ("byol.doors", "byol.telemetry", "byol.text", "byol.limits", "byol.machine", "byol.children", "byol.signals"),
    ("byol.strict_json", "byol.console"),
    ("byol.files",),
    ("byol.run",),
    ("byol.images",),
    ("byol.outputs", "byol.options", "byol.bundle"),
    ("byol.serve",),
    ("byol.encoders",),
    ("byol.training",),
    ("byol.pretrained",),
    ("byol.finetuning",),
    ("byol.commands",),
    ("byol.export",),
    ("byol.cli",),
    ("byol.__main__",),
)
TORCH_FREE = 7  # layers
NEVER = {"byol.training": "byol.serve", "byol.finetuning": "byol.serve", "byol.encoders": "byol.serve"}
# Inside functions only: the commands, the demo of the whole path, and what training asks of export and of bundles.
UPWARDS = {"byol.cli", "byol.commands.demo", "byol.training.exportable", "byol.training.recipes.initial"}
DOORS = ("byol", "byol.serve", "byol.export", "byol.images", "byol.bundle")

SERVING = {"numpy", "PIL", "onnx", "onnxruntime", "safetensors", "click", "rich", "pyarrow", "scipy", "threadpoolctl"}
SERVING |= {"google"}  # protobuf, whose messages onnx gives
OPTIONAL = {"ray", "fsspec", "sklearn"}  # of extras, or of whoever calls, inside functions only
OF_EXTRAS = {
    "byol.serve.commands.report": {"bokeh"},
    "byol.serve.report": {"bokeh", "jinja2", "markupsafe", "umap"},  # `report` and `report-umap`
    "byol.serve.server": {"fastapi", "h11", "prometheus_client", "starlette", "uvicorn"},  # `server`
    "byol.images.remote.http": {"aiohttp", "fsspec"},  # `remote`; the module is imported inside a function
}


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for folder, name in (("byol", "byol"), ("serve", "byol.serve"), ("export", "byol.export")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((name, *(part for part in parts if part != "__init__")))] = path
    assert len(found) > 100
    return found


MODULES = modules()


def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted module, whether at module level) for each import of a file; `from a import b` counts as a.b and a."""
    tree = ast.parse(path.read_text(), str(path))
    later = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test))
        for node in ast.walk(block)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in later) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", id(node) not in later) for alias in node.names]
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer(module: str) -> int | None:
    """The layer of a module of ours; None for the package itself, which holds its doors and its version."""
    return next((i for i, names in enumerate(LAYERS) for name in names if within(module, name)), None)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "byol"])
def test_imports_go_downwards_only(module: str) -> None:
    own = layer(module)
    assert own is not None, f"{module} has no layer: name its package in LAYERS"
    for imported, at_once in imports(MODULES[module]):
        below = layer(imported)
        if below is None or module in DOORS:
            continue
        lazily = not at_once and module in UPWARDS
        known_by_type = not at_once and module == "byol.console"  # a type of what it shows
        assert below <= own or lazily or known_by_type, f"{module} imports {imported}, which stands on it"
        forbidden = next((never for package, never in NEVER.items() if within(module, package)), None)
        assert forbidden is None or not within(imported, forbidden), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if (layer(name) or 0) < TORCH_FREE and name != "byol"])
def test_serving_and_all_below_it_need_their_own_dependencies_only(module: str) -> None:
    of_extra = {top for package, tops in OF_EXTRAS.items() if within(module, package) for top in tops}
    for imported, at_once in imports(MODULES[module]):
        top = imported.partition(".")[0]
        optional = top in OPTIONAL and not at_once
        known = top == "byol" or top in sys.stdlib_module_names or top in SERVING or top in of_extra
        assert optional or known, f"{module} imports {imported}"


def test_no_modules_import_each_other() -> None:
    """No circle of modules, whatever their layers: each can be imported first."""
    at_once = {
        name: {
            found
            for imported, at_module_level in imports(path)
            if at_module_level
            for found in (imported, imported.rpartition(".")[0])
            if found in MODULES and found not in DOORS and found != name
        }
        for name, path in MODULES.items()
    }
    left = dict(at_once)
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert not left, {name: sorted(needed & left.keys()) for name, needed in left.items()}


def test_the_checks_above_can_fail() -> None:
    found = imports(MODULES["byol.serve.commands.extract"])
    assert ("byol.serve.encoder.Encoder", False) in found
    assert ("click", True) in found
    assert layer("byol.training.job") > layer("byol.images.open")  # type: ignore[operator]


@pytest.mark.parametrize("folder", ["byol", "serve", "export", "benchmarks", "tests"])
def test_no_folder_holds_more_than_a_person_overlooks(folder: str) -> None:
    folders = [ROOT / folder, *(path for path in (ROOT / folder).rglob("*") if path.is_dir())]
    counted = {path: len(list(path.glob("*.py"))) for path in folders}
    assert {path: count for path, count in counted.items() if count > 16} == {}


def test_the_torch_free_tests_can_be_collected_where_only_what_they_need_is_installed() -> None:
    """Here all else is hidden. `.github/workflows/ci.yml` and `make floors` really run them so."""
    code = """
import importlib, sys

class Hidden:
    names = {"torch"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import pytest
from tests.support.torch_free import modules, unneeded
Hidden.names |= unneeded()
for name in ("tests.conftest", *modules()):
    try:
        importlib.import_module(name)
    except pytest.skip.Exception:
        pass
print(len(modules()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_what_tests_share_lies_in_support() -> None:
    shared = {
        f"{path.relative_to(ROOT)} imports {imported}"
        for path in (ROOT / "tests").rglob("*.py")
        for imported, _ in imports(path)
        if within(imported, "tests") and not imported.startswith(("tests.support", "tests.fuzz"))
    }
    assert shared == set()


def test_pyproject_lists_every_package() -> None:
    import tomllib

    with open(ROOT / "pyproject.toml", "rb") as stream:
        listed = tomllib.load(stream)["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


@pytest.mark.parametrize("door", DOORS)
def test_public_doors_say_what_lies_behind_them(door: str) -> None:
    import importlib

    if door in ("byol", "byol.export"):
        pytest.importorskip("torch")
    module = importlib.import_module(door)
    assert sorted(module.__all__) == module.__all__
    assert {name for name in module.__all__ if not name.startswith("__")} == set(dir(module))
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_imports_of_images_leave_the_warning_filters_alone() -> None:
    code = """
import importlib, sys, warnings
import numpy, pyarrow.parquet, PIL.Image
before = list(warnings.filters)
for name in sys.argv[1:]:
    importlib.import_module(name)
assert warnings.filters == before, warnings.filters
"""
    names = [name for name in MODULES if name.startswith("byol.images") and name != "byol.images.remote.http"]
    assert len(names) > 20
    subprocess.run([sys.executable, "-c", code, *names], check=True)
