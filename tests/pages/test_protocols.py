"""Every command of docs/protocols.md runs as it stands there, on small data."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from byol.commands import finetune
from byol.finetuning.tuner import FinetuneConfig
from byol.serve.evaluate import baselines
from tests.support.command_line import byol
from tests.support.small import REPOSITORY, folder

PAGE = (REPOSITORY / "docs" / "protocols.md").read_text()


def commands() -> list[str]:
    """The lines of the page's code blocks that call `byol`, continued lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?byol ", line)]


def test_every_command_of_the_page_runs(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(quick / "run", tmp_path / "run")
    shutil.copytree(quick / "bundle", tmp_path / "bundle")
    for name, classes in (("photos", ("cat", "dog")), ("pets", ("rat", "hen")), ("birds", ("owl", "tit", "jay"))):
        folder(tmp_path / name / "train", classes, per_class=40)
        folder(tmp_path / name / "test", classes, per_class=3, start=1000)
    short = functools.partial(FinetuneConfig, epochs=(3,), lr=(0.01,))  # what the page leaves to the defaults
    monkeypatch.setattr(finetune, "FinetuneConfig", short)
    # In this process, which has torch already; in another one: tests/export/test_untrained.py.
    monkeypatch.setattr(baselines, "run_command", lambda *words: "failed" if byol(*words).code else "")
    monkeypatch.chdir(tmp_path)
    found = commands()
    assert {line.split()[1] for line in found} == {"knn", "linear", "finetune", "export", "classify", "transfer"}
    for line in found:
        done = byol(*shlex.split(line)[1:])
        assert done.code == 0, f"{line}\n{done.err}"
        assert "left out" not in done.err
        if "--json" in line:
            json.loads(done.out)
