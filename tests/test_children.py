"""A Python that ours starts imports nothing of the folder it is started in, whoever starts it."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from byol import children
from byol.children import ROOT, python_running, run_command, safe_children, speaks_for_job
from byol.signals import Stopped
from byol.text import printable
from tests.support.command_line import byol
from tests.support.small import traps


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    monkeypatch.chdir(traps(tmp_path / "here"))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", ROOT)


def test_processes_of_multiprocessing_and_of_others(trapped):
    assert subprocess.run([sys.executable, "-c", "import queue"], capture_output=True).returncode == 1  # traps work
    with safe_children():
        done = subprocess.run([sys.executable, "-m", "byol", "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        worker = multiprocessing.get_context("spawn").Process(target=printable, args=("a",))
        worker.start()
        worker.join()
        assert worker.exitcode == 0


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = dict(os.environ)
    with safe_children():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert dict(os.environ) == before


def test_every_command_runs_with_safe_children(monkeypatch):
    seen = []
    monkeypatch.setattr("byol.cli._run", lambda: seen.append(os.environ.get("PYTHONSAFEPATH")))
    byol("doctor")
    assert seen == ["1"]


def test_a_checkout_that_is_the_current_folder_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [ROOT, *sys.path])
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    with safe_children():
        assert os.environ["PYTHONPATH"] == os.pathsep.join([ROOT, "/elsewhere"])


def test_a_python_with_the_search_path_of_this_one(trapped, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    code = "import json, queue; print(json.dumps([sys.path, sys.argv[1]]))"
    done = subprocess.run([*python_running(code), "given"], capture_output=True, text=True, check=True)
    import json

    path, given = json.loads(done.stdout)
    assert path == [entry for entry in sys.path if entry]
    assert given == "given"


def test_one_process_of_a_job_says_why_it_fails(tmp_path, monkeypatch):
    assert speaks_for_job()  # not started by ours
    monkeypatch.setenv("BYOL_MEETING", f"file://{tmp_path}/processes")
    assert speaks_for_job()
    assert speaks_for_job()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert not speaks_for_job()
    done = byol("train", tmp_path / "none", "--out", tmp_path / "run")
    assert (done.code, done.err) == (1, "")
    monkeypatch.setenv("BYOL_MEETING", f"file://{tmp_path}/gone/processes")
    assert speaks_for_job()


ENDLESS = """
from byol.children import end_with_parent
end_with_parent()
import time
time.sleep(600)
"""


def test_a_command_in_another_process_says_why_it_fails(trapped, tmp_path):
    assert run_command("info", str(tmp_path)) == f"{tmp_path} is not a bundle: it holds no manifest.json"


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_process_ends_with_the_one_that_holds_its_input():
    with subprocess.Popen(python_running(ENDLESS), stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()  # what becomes of it when its parent is killed
        assert child.wait(60) == -signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_signal_ends_the_command_too(monkeypatch):
    started = []

    class Kept(subprocess.Popen[str]):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            started.append(self)
            signal.setitimer(signal.ITIMER_REAL, 0.2)

    def stop(*_):
        raise Stopped("stopped")

    monkeypatch.setattr(children, "_COMMAND", ENDLESS)
    monkeypatch.setattr(subprocess, "Popen", Kept)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Stopped):
            run_command("train")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert started[0].poll() is not None
