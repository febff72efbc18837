"""The pages: a test runs all their Python, their commands exist with these options, no public name is missing."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

import byol
import byol.bundle
import byol.export
import byol.images
import byol.serve
from byol.bundle.parity import compare_features
from byol.cli import COMMANDS
from byol.cli import byol as group
from byol.commands.train import changed, train
from byol.serve import Encoder, verify
from byol.training.config import TrainConfig
from byol.training.data.view_config import ViewConfig
from byol.training.recipes.presets import PRESETS
from tests.support.documents import DOCS, PAGES, blocks, code, inline_code
from tests.support.settings_table import table
from tests.support.small import REPOSITORY, folder

SHELL = ("", "sh", "console")
OPERATORS = re.compile(r"[;&|<>()]+")


# -------------------------------------------------------------------------------------------------------- Python


def claimed() -> set[tuple[str, str]]:
    """(page, heading) of every call `code("PAGE", "HEADING")` in the tests."""
    found = set()
    for path in (REPOSITORY / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "code":
                page, heading = (ast.literal_eval(word) for word in node.args)
                found.add((page, heading))
    return found


def test_a_test_runs_the_python_under_every_heading() -> None:
    present = {(page, block.heading) for page in PAGES for block in blocks(page) if block.language == "python"}
    assert present == claimed()


def golden(bundle: Path) -> tuple[np.ndarray, np.ndarray]:
    """A bundle's golden images, and torch's features of them."""
    tensors = load_file(bundle / "golden.safetensors")
    return tensors["images"], tensors["features"]


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Within the gate that a bundle had to pass."""
    error, cosine = compare_features(expected, found)
    assert error < 1e-4
    assert cosine > 0.99999


def test_the_readme_in_production(
    place: Path, classified: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, ours = code("../README.md", "In production")
    monkeypatch.chdir(tmp_path)
    Path("bundle").symlink_to(place / "with")  # the bundle that `classified` put a classifier into
    Path("photos").symlink_to(place / "test")
    photos = sorted((place / "test").rglob("*.png"))
    for name, photo in zip(("a.jpg", "b.png"), photos, strict=False):
        Path(name).symlink_to(photo)
    images, expected = golden(place / "bundle")
    names: dict[str, Any] = {"onnxruntime": onnxruntime, "batch_uint8": images}
    exec(plain, names)
    assert_same(names["features"], expected)
    x, y = Encoder("bundle", "cpu")(photos), [photo.parent.name for photo in photos]
    names = {"x": x, "y": y}
    exec(ours, names)
    assert names["ids"] == [photo.relative_to(place / "test").as_posix() for photo in photos]
    assert_same(names["features"], x)
    assert names["probe"].score(x, y) == 1.0
    assert names["classifier"](photos[:2]).shape == (2, len(set(y)))


def test_training_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = code("api.md", "Training")
    folder(tmp_path / "photos", per_class=16)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block.replace("epochs=100", "epochs=1"), names)
    assert names["run"] == Path("run")
    assert verify("bundle").ok
    assert names["encoder"](torch.zeros(2, 3, 64, 64)).shape == (2, 512)


def test_the_bundles_graph(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = code("bundle.md", "`encoder.onnx`")
    monkeypatch.chdir(place / "bundle")
    images, expected = golden(place / "bundle")
    names: dict[str, Any] = {"onnxruntime": onnxruntime, "batch_uint8": images}
    exec(block, names)
    assert_same(names["features"], expected)


DOORS = (byol, byol.bundle, byol.export, byol.images, byol.serve)


def test_every_public_name_is_on_its_page() -> None:
    documented = re.findall(
        r"^\.\. auto(?:class|function|exception):: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE
    )
    public = {f"{door.__name__}.{name}" for door in DOORS for name in door.__all__ if not name.startswith("__")}
    assert set(documented) == public


# ------------------------------------------------------------------------------------------------------ commands


def command_lines(page: str) -> Iterator[list[str]]:
    """The words after `byol` of every command in a page's blocks."""
    for block in blocks(page):
        lines = block.text.replace("\\\n", " ").splitlines() if block.language in SHELL else []
        if block.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            for operator, words in itertools.groupby(lexer if "byol " in line else (), OPERATORS.fullmatch):
                command = list(words)
                started = command[0] in ("byol", "srun") or {"-m", "--no-python"} & set(command)
                if not operator and "byol" in command and started:
                    yield command[command.index("byol") + 1 :]


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name, a group's own commands included, and the words that are left."""
    command: click.Command | None = group
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.get_command(click.Context(command), words[0])
        words = words[1:]
    assert command is not None, "no such command"
    return command, words


def check(words: list[str]) -> None:
    """Raises what click says of unknown options, illegal choices, too many or missing arguments."""
    command, rest = resolve(words)
    options = command.make_context("byol", rest).params
    if command.name == "train":  # the parameters it does not name are settings
        assert train.callback is not None
        known = set(signature(train.callback).parameters)
        settings = {name: value for name, value in options.items() if name not in known}
        changed(PRESETS[settings["preset"]]() if settings["preset"] else TrainConfig(), settings)


LINES = [(page, words) for page in PAGES for words in command_lines(page)]


@pytest.mark.parametrize(("page", "words"), LINES, ids=[f"{page}: {' '.join(words)}" for page, words in LINES])
def test_a_command_in_a_block_is_one(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Path, "convert", lambda self, value, parameter, context: value)  # BUNDLE is not there
    check(words)


def test_commands_are_found_in_the_blocks() -> None:
    assert {words[0] for _, words in LINES} >= {"train", "export", "extract", "classify", "knn", "linear"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train IMAGES --out RUN --batch 8", "No such option"),
        ("train IMAGES --out RUN --optimizer adam", "'adam' is not one of"),
        ("train IMAGES --out RUN --set colour=1", "unknown setting 'colour'"),
        ("train IMAGES", "Missing parameter: out"),
        ("linear BUNDLE more --train SRC --test SRC", "unexpected extra argument"),
        ("learn IMAGES", "no such command"),
    ],
)
def test_what_is_no_command_is_found(line: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Path, "convert", lambda self, value, parameter, context: value)
    with pytest.raises((click.UsageError, ValueError, AssertionError)) as raised:
        check(line.split())
    assert message in str(raised.value)


def options_of(command: click.Command) -> set[str]:
    parameters = command.get_params(click.Context(command))  # with --help
    own = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*(options_of(inner) for inner in getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", PAGES)
def test_options_and_settings_in_prose_exist(page: str) -> None:
    """`byol COMMAND ... --option` is that command's; an option alone is some command's; so are settings."""
    known = {name: options_of(resolve([name])[0]) for name in COMMANDS}
    settings = {field.name for config in (TrainConfig, ViewConfig) for field in dataclasses.fields(config)}
    for span in inline_code(page):
        command = re.match(r"byol ([a-z]\S*)", span)
        if not command and not span.startswith("--"):
            continue
        legal = known[command[1]] if command else set().union(*known.values())
        assert set(re.findall(r"--[a-z][a-z0-9-]*", span)) <= legal, span
        assert set(re.findall(r"--set (?:view[12]\.)?([a-z_0-9]+)=", span)) <= settings, span


def test_every_setting_is_listed_with_its_default_and_meaning():
    page = (DOCS / "recipe.md").read_text()
    for lines in (table(TrainConfig, leave_out=("preset", "init")), table(ViewConfig)):
        assert "\n".join(lines) in page, "docs/recipe.md: write the lines of tests.support.settings_table anew"


def test_the_encoders_said_to_export_are_those_that_were_measured():
    found = json.loads((REPOSITORY / "benchmarks" / "results" / "families-cpu.json").read_bytes())
    page = (DOCS / "export.md").read_text()
    assert found["timm"] in page
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\S+) \|$", page, re.MULTILINE)
    measured = [row for row in found["rows"] if "error" in row]
    wanted = {(row["row"], str(row["size"]), str(row["nodes"]), f"{row['error']:.1e}") for row in measured}
    assert set(rows) == wanted
    assert max(row["error"] for row in measured) < 1e-5
    for row in found["rows"]:
        assert "error" in row or row["refused"] in page


# ---------------------------------------------------------------------------------------------------- installing

# The name in a package index is not ours: anybody could register it, and be recommended by every bundle.
FROM_AN_INDEX = re.compile(
    r"\b(?:(?:pipx?|uv|conda|poetry)\s(?:\w+\s)?(?:install|add|run|download)|uvx)\s"
    r"[^`\n]*?(?<=[\s'\"])byol(?=[\s'\"\[`=<>~!;,)]|$)",
    re.MULTILINE,
)
TEXTS = {".md", ".py", ".toml", ".txt", ".html", ".yml", ".mjs", ".js"}


@pytest.mark.parametrize("tool", ["pip install", "python -m pip install -U", "uv add", "uvx", "pipx run"])
@pytest.mark.parametrize("wanted", ["byol", "'byol[train]'", "numpy byol", "byol==0.1"])
def test_an_install_from_an_index_is_found(tool: str, wanted: str) -> None:
    assert FROM_AN_INDEX.search(f"then `{tool} {wanted}` once")


def test_nothing_installs_byol_from_an_index() -> None:
    own = Path(__file__)
    files = [path for top in ("*", ".ci/*", ".github/**/*") for path in REPOSITORY.glob(top) if path.is_file()]
    folders = ("byol", "export", "serve", "docs", "tests", "benchmarks", "constraints")
    files += [path for name in folders for path in (REPOSITORY / name).rglob("*") if "_build" not in path.parts]
    read = [path for path in files if path != own and (path.suffix in TEXTS or path.name in ("Makefile", "run"))]
    assert len(read) > 300
    found = [(path.name, match[0]) for path in read for match in FROM_AN_INDEX.finditer(path.read_text())]
    assert found == []
