"""Names that a stranger chose reach no terminal, spreadsheet or page as anything but names."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from byol.bundle.card import model_card
from byol.bundle.manifest import Finetuning, Manifest, Origin, Training
from byol.bundle.measured import Evaluation
from tests.support.command_line import Outcome, byol, harmless
from tests.support.tiny import write_images, write_tiny_bundle

CODES, TURNED = "\x1b]0;x\x07", "\u202egpj.exe"
MARKUP, LINK, TICKS, FORMULA = "<img src=x onerror=1>", "](http:x) ![a](b)", "`| a `` |", "=cmd|' C'!A0"
ALL = f"{CODES}{TURNED}\n{MARKUP}{LINK}{TICKS}"
CLASSES = (FORMULA, MARKUP, LINK, TICKS, "+1+1", "@SUM(1)", "cat")  # a manifest takes no control characters
SECRET = "s3://me:pa@ss:w9rd@host/bucket?token=s3cr3t"


def quiet(done: Outcome, code: int) -> Outcome:
    """Nothing that a terminal obeys, no secret; an error is one line, the last one."""
    assert done.code == code, done
    assert all(map(harmless, [*done.out.splitlines(), *done.err.split("\n")])), done
    assert not re.search("pa@ss|w9rd|s3cr3t", done.out + done.err)
    assert "Traceback" not in done.err
    assert sum(line.startswith("Error: ") for line in done.err.split("\n")) == (1 if code else 0)
    return done


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bundle/ and classes/, a bundle with a classifier; images/ with such classes; odd/ with such files."""
    root = tmp_path_factory.mktemp("names")
    write_tiny_bundle(root / "bundle")
    write_images(root / "images", dict.fromkeys(CLASSES, 4))
    write_images(root / "odd", {ALL: 3, FORMULA: 3})
    (root / "odd" / ALL / f"{ALL}.png").write_bytes(b"broken")
    Image.new("RGB", (8, 8)).save(root / "odd" / f"-1+{CODES}.png")
    done = byol("linear", root / "bundle", *both(root / "images"), "--save-classifier", root / "classes")
    assert done.code == 0, done.err
    return root


def both(images: Path) -> tuple[object, ...]:
    return "--train", images, "--test", images


def test_tables_and_lists(here: Path, tmp_path: Path) -> None:
    bundle, odd = here / "bundle", here / "odd"
    done = quiet(byol("extract", bundle, odd, "--out", tmp_path / f"{ALL}.parquet"), 0)
    assert "\\x1b]0;x\\x07\\u202egpj.exe\\n<img" in done.err  # named, and by its whole name
    ids = pq.read_table(tmp_path / f"{ALL}.parquet").column("id").to_pylist()
    assert any(CODES in name and TURNED in name for name in ids)  # data hold names as they are
    labelled = tmp_path / "labelled"
    write_images(labelled, {ALL: 3, FORMULA: 3})
    done = quiet(byol("linear", bundle, *both(labelled), "--per-class", "--confusion", tmp_path / "c.csv"), 0)
    assert "\\u202egpj" in done.out
    done = quiet(byol("linear", bundle, *both(labelled), "--save-classifier", tmp_path / "classes"), 1)
    assert "a bundle cannot name the class" in done.err
    assert "device: " not in done.err  # said before the work
    quiet(byol("knn", bundle, *both(labelled), "--k", "1"), 0)
    quiet(byol("transfer", bundle, f"{ALL.replace('=', ':')}={labelled},{labelled}"), 0)
    for line in quiet(byol("neighbors", bundle, "--bank", labelled, "--query", labelled, "--json"), 0).out.splitlines():
        assert json.loads(line)
    cells = [cell for row in csv.reader((tmp_path / "c.csv").read_text().splitlines()) for cell in row]
    assert len(cells) == 9
    assert all(map(harmless, cells))


def test_spreadsheets(here: Path, tmp_path: Path) -> None:
    done = quiet(byol("classify", here / "classes", here / "odd", "--out", tmp_path / "out.csv"), 0)
    assert "skipped 1" in done.err
    with open(tmp_path / "out.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 7
    for row in rows:
        assert all(map(harmless, row.values()))
        for name in ("id", "label", "predicted"):
            assert not row[name].startswith(("=", "+", "-", "@")), row
    assert {f"'{FORMULA}/000.png", f"'-1+{CODES.encode('unicode_escape').decode()}.png"} <= {row["id"] for row in rows}
    byol("classify", here / "classes", here / "odd", "--out", tmp_path / "out.parquet")
    assert f"{FORMULA}/000.png" in pq.read_table(tmp_path / "out.parquet").column("id").to_pylist()


class Page(HTMLParser):
    """The elements and attributes outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}


def test_the_report(here: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, {ALL: 4, "<!--<script>": 4, MARKUP: 4})
    run = tmp_path / "a run"
    run.mkdir()
    data = {"name": ALL, "images": 80, "digest": ALL}
    config = {"arch": ALL, "preset": "</script><script>alert(1)</script>", ALL: SECRET}
    (run / "config.json").write_text(json.dumps({"config": config, "data": data, "versions": {ALL: ALL}}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 1, "loss": 1, ALL: 1}) + "\n")
    quiet(byol("report", run, here / "classes", *both(images), "--out", tmp_path / "page.html"), 0)
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 4
    assert "onerror" not in page.names
    assert not any(name in text for name in (CODES, TURNED, "pa@ss", "s3cr3t"))
    assert "\\x1b]0;x\\x07\\u202egpj.exe" in text


def test_the_card(here: Path) -> None:
    changed = Manifest.from_json((here / "classes" / "manifest.json").read_text())
    assert changed.classifier
    assert set(changed.classifier.classes) == set(CLASSES)
    name = f"{MARKUP}{LINK}{TICKS}http://x.y www.x.y"
    plain = rendered(model_card(changed))
    head = replace(changed.classifier, train=name, test=name, n_test=1, top1=1.0)
    architecture = replace(changed.architecture, library=name, name=name)
    parity = replace(changed.files["encoder.onnx"].parity, reference=name, torch=None, onnxruntime=name, provider=name)  # type: ignore[type-var]
    files = {**changed.files, "encoder.onnx": replace(changed.files["encoder.onnx"], parity=parity)}
    known = {"architecture": architecture, "files": files, "classifier": head, "byol_version": name}
    evaluation = Evaluation(name, name, 1, 1, 1, 0.07, {"encoder.onnx": 1.0})
    tuning = Finetuning(name, 1, 0.1, 1, False)
    for facts in (
        {"training": Training(name, 1, 1, 1.0, name), "finetuning": tuning, "evaluation": evaluation},
        {"training": None, "origin": Origin(name, name, name)},
        {"finetuning": replace(tuning, from_scratch=True)},
    ):
        card = rendered(model_card(replace(changed, **known, **facts)))  # type: ignore[arg-type]
        assert set(card.tags) <= set(plain.tags)
        assert not {"a", "img"} & set(card.tags)
        assert card.tags.count("table") == plain.tags.count("table")


def rendered(card: str) -> Page:
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(card))


# ------------------------------------------------------------------------------------------------------ errors


def test_errors_about_bundles(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / ALL
    folder.mkdir()
    quiet(byol("info", folder), 1)
    quiet(byol("info", tmp_path / f"{ALL}2"), 2)
    for content in (json.dumps({ALL: ALL}), ALL, json.dumps({"schema_version": ALL})):
        (folder / "manifest.json").write_text(content)
        quiet(byol("info", folder), 1)
        quiet(byol("extract", folder, here / "images", "--out", tmp_path / "f.parquet"), 1)
    manifest = json.loads((here / "bundle" / "manifest.json").read_text())
    variants: list[dict[str, object]] = [
        {ALL: 1},
        {"onnx": {**manifest["onnx"], "input": ALL}},
        {"files": {ALL: {}}},
    ]
    for changes in variants:
        (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
        quiet(byol("info", folder), 1)


def test_errors_about_sources(here: Path, tmp_path: Path) -> None:
    bundle = here / "bundle"

    def refused(images: object, code: int = 1) -> None:
        quiet(byol("extract", bundle, images, "--out", tmp_path / "f.parquet"), code)

    refused(tmp_path / f"{ALL} is not there")
    (tmp_path / ALL).mkdir()
    refused(tmp_path / ALL)
    arrays: dict[str, Any] = {f"{CODES}{TURNED}\n": np.zeros(3)}
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz")
    (tmp_path / "list.txt").write_text(f"{CODES}{TURNED}.png\n{SECRET}\n")
    refused(tmp_path / "list.txt")
    for suffix in ("tar", "parquet", "npz", "png", "txt"):
        (tmp_path / f"{CODES}{TURNED}\n.{suffix}").write_bytes(b"\x1b]0;x\x07 nothing \xff")
        refused(tmp_path / f"{CODES}{TURNED}\n.{suffix}")
    pq.write_table(pa.table({ALL: [1]}), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet")
    refused(f"{SECRET.replace('s3:', 'memory:')}{CODES}")


def test_errors_about_what_was_typed(here: Path, tmp_path: Path) -> None:
    quiet(byol(ALL), 2)
    quiet(byol("info", here / "bundle", f"--{ALL}"), 2)
    quiet(byol("info", here / "bundle", ALL), 2)
    quiet(byol("classify", here / "classes", here / "odd", "--out", tmp_path / f"x.{CODES}\n"), 2)
    quiet(byol("knn", here / "bundle", *both(here / "images"), "--k", ALL), 2)
    quiet(byol("knn", here / "bundle", *both(here / "images"), "--temperature", ALL), 2)
    quiet(byol("transfer", here / "bundle", ALL.replace("=", "")), 2)
    quiet(byol("train", here / "images", "--out", tmp_path / "run", "--set", f"{ALL}=1"), 2)
    quiet(byol("train", here / "images", "--out", tmp_path / "run", "--arch", ALL), 2)


def test_a_defect_is_shown_without_codes(tmp_path: Path) -> None:
    script = tmp_path / "defect.py"
    script.write_text(
        "import click, byol.cli\n"
        "@click.command()\n"
        "def fail(): raise AssertionError(chr(27) + ']0;' + chr(0x202e) + ' s3://a:b@c')\n"
        "byol.cli.LazyGroup.get_command = lambda *_: fail\n"
        "byol.cli.main()\n"
    )
    done = subprocess.run([sys.executable, script, "fail"], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "AssertionError: \\x1b]0;\\u202e s3://c" in done.stderr
    assert all(map(harmless, done.stderr.split("\n")))
