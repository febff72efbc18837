"""Nothing is sent anywhere: what the commands do with the network, as the kernel sees it (strace)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from byol.cli import COMMANDS
from tests.support.small import folder
from tests.support.tiny import write_tiny_bundle

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

# ONNX Runtime looks up its events host 9 s after it was imported, and not where it recognises a test or CI.
SECONDS = 11
RECOGNISED = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "TF_BUILD", "GITHUB_ACTIONS", "BUILD_ID")
DOWNLOADS, LONG = "fetch", "demo"  # asked for the network; three minutes of train, export and linear
SERVES = "serve"  # until it is told to end; a test of its own
RUN = """
import json, sys, time
start = time.monotonic()
from tests.support.command_line import byol

for words in json.loads(sys.argv[1]):
    done = byol(*words)
    assert done.code == 0, (words, done.err)
time.sleep(max(0, float(sys.argv[2]) - (time.monotonic() - start)))
"""
SMALL = ("--arch", "timm:test_resnet", "--no-export-check", "--image-size", "16", "--batch-size", "8", "--max-steps=1")
NARROW = ("projector_hidden=16", "projector_out=8", "predictor_hidden=16")
# A bound stream socket hears nothing before it listens: torch binds one for a moment to find a free port.
BOUND = re.compile(r'^(\d+) +bind\((\d+), .*htons\(0\).*"(?:::|0\.0\.0\.0)"')
TO_AN_ADDRESS = re.compile(r"\b(?:connect|bind|send\w+)\(.*sa_family=AF_INET")
LOCAL = re.compile(r'(?!.*htons\(53\)).*(?:inet_addr\("127\.|"::1"|"::ffff:127\.)')  # port 53: a name is looked up


def commands(here: Path) -> list[list[str]]:
    """Every command, on what those before it made."""
    images, run, bundle = str(here / "images"), str(here / "run"), str(here / "tiny")
    both = ["--train", images, "--test", images]
    settings = [word for setting in NARROW for word in ("--set", setting)]
    classes = str(here / "classes")
    return [
        ["doctor"],
        [
            "train",
            images,
            "--out",
            run,
            "--val-data",
            images,
            "--device",
            "cpu",
            "--nproc",
            "2",
            *SMALL,
            *settings,
        ],
        ["export", run, "--out", str(here / "bundle")],
        ["info", bundle, "--verify"],
        ["extract", bundle, images, "--out", str(here / "features.parquet")],
        ["extract", bundle, images, "--out", f"{here}/features/", "--processes", "2"],
        ["knn", bundle, *both],
        ["linear", bundle, *both, "--save-classifier", classes],
        ["classify", classes, images, "--out", str(here / "classes.csv")],
        ["transfer", bundle, f"images={images},{images}"],
        ["neighbors", bundle, "--bank", images, "--query", images],
        ["duplicates", bundle, images, "--out", str(here / "pairs.parquet")],
        ["report", run, bundle, *both, "--out", str(here / "report.html")],
        ["finetune", run, images, "--out", str(here / "tuned"), "--lr", "0.01", "--epochs", "1", "--device", "cpu"],
        ["bench", bundle, "--seconds", "0.05"],
        ["cache"],
    ]


def traced(log: Path, *words: str, **more: str) -> list[str]:
    """Run Python; what it and its processes asked of the kernel's network beyond sockets of this machine."""
    environment = {name: value for name, value in os.environ.items() if name not in RECOGNISED}
    call = [
        "strace",
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-e",
        "trace=connect,bind,listen,sendto,sendmsg,sendmmsg",
        "-o",
        str(log),
        sys.executable,
        *words,
    ]
    done = subprocess.run(call, env={**environment, **more}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = log.read_text().splitlines()
    return [line for line in asked if TO_AN_ADDRESS.search(line) and not LOCAL.match(line) and not deaf(line, asked)]


def deaf(line: str, asked: list[str]) -> bool:
    """Whether it binds a socket, of a port that nobody knows, on which nothing then listens."""
    bound = BOUND.match(line)
    return bound is not None and not any(re.match(rf"{bound[1]} +listen\({bound[2]},", other) for other in asked)


def test_no_command_leaves_this_machine(tmp_path: Path) -> None:
    folder(tmp_path / "images", per_class=8)
    write_tiny_bundle(tmp_path / "tiny")
    calls = commands(tmp_path)
    assert {words[0] for words in calls} == set(COMMANDS) - {DOWNLOADS, LONG, SERVES}
    assert traced(tmp_path / "log", "-c", RUN, json.dumps(calls), str(SECONDS), HOME=str(tmp_path)) == []
    assert not (tmp_path / ".cache" / "Microsoft").exists()


def test_a_server_listens_on_this_machine_only(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    code = f"""
import signal, sys, threading
from byol.cli import main
sys.argv = ["byol", "serve", {str(bundle)!r}, "--port", "0", "--device", "cpu"]
threading.Timer({SECONDS}, signal.raise_signal, (signal.SIGTERM,)).start()
main()
"""
    assert traced(tmp_path / "log", "-c", code, HOME=str(tmp_path)) == []
    assert "listen(" in (tmp_path / "log").read_text()


def test_that_the_look_at_the_network_sees_one(tmp_path: Path) -> None:
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 53))"
    (line,) = traced(tmp_path / "log", "-c", code)
    assert "192.0.2.1" in line
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.53', 53))"
    assert traced(tmp_path / "log", "-c", code)
    assert not traced(tmp_path / "log", "-c", code.replace("53)", "54)"))
    code = "import socket; heard = socket.socket(); heard.bind(('0.0.0.0', 0))"
    assert not traced(tmp_path / "log", "-c", code)
    assert traced(tmp_path / "log", "-c", f"{code}; heard.listen()")
