"""The GPU trial, tiny and on the CPU: all of it from end to end."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.gpu import running
from benchmarks.gpu.__main__ import link_cuda, main, unpack
from benchmarks.gpu.running import begin, run_group
from benchmarks.gpu.scale import DRY
from benchmarks.gpu.steps import CALLS, Step
from benchmarks.gpu.summary import summary
from benchmarks.gpu.training import ROWS
from benchmarks.rows import Rows
from tests.support.forks import Fork

pytest.importorskip("torch")
LIGHTLY = importlib.util.find_spec("lightly") is not None


def forked(step, path, variables):
    """As `begin`, but the trial's scripts in forks of a process that has imported torch: each import takes seconds."""
    module, words = step.words[2:3], step.words[3:]
    if not module or not module[0].startswith("benchmarks.gpu."):
        return begin(step, path, variables)
    script = f"import runpy; runpy.run_module({module[0]!r}, run_name='__main__', alter_sys=True)"
    return Fork(words, path, prepare=os.setsid, script=script, environment=variables, has_children=True)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """The results of all three calls, by name of file, and what was printed."""
    folder = tmp_path_factory.mktemp("trial")
    words = [*CALLS, "--dry", "--out", folder / "out", "--work", folder / "work"]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["benchmarks.gpu", *map(str, words)])
        patch.setattr(running, "begin", forked)
        try:
            main()
        finally:
            signal.signal(signal.SIGTERM, before)
    return {path.stem: json.loads(path.read_bytes()) for path in (folder / "out").glob("*.json")}, printed.getvalue()


def failures(rows):
    return {row["row"]: row["failed"] for row in rows if "failed" in row}


def test_every_step_is_a_row_and_wrote_its_own(trial):
    results, _ = trial
    steps = {row["row"]: row for row in results["steps-one-two-three"]["rows"]}
    expected = {"raw", "doctor", "pytest", "parity-0", "warm-training", "warm-inference-0", "training", "profile"}
    expected |= {
        "probes",
        "inference-first",
        "inference-last",
        "peers",
        "train",
        "export",
        "knn-20",
        "knn-200",
        "linear",
        "final",
    }
    assert steps.keys() >= expected
    assert set(failures(steps.values())) <= {"machine"}  # nvidia-smi
    scripts = expected - {"doctor", "pytest", "train", "export", "knn-20", "knn-200", "linear"}
    assert [name for name in scripts if len(results[name]["rows"]) < 2] == []
    for name in scripts - {"peers"}:
        assert failures(results[name]["rows"]) == {}, name
    for name in ("knn-20", "knn-200", "linear"):
        assert 0 <= steps[name]["said"]["top1"] <= 1
        assert steps[name]["said"]["n_test"] == 32


def test_the_rows_hold_what_they_are_for(trial):
    results, printed = trial
    training = {row["row"]: row for row in results["training"]["rows"]}
    assert training.keys() == {"the card", *ROWS}
    assert all(training[name]["images_per_second"] > 0 for name in ROWS)
    assert training["compile none, 512"]["share_of_matrix"] > 0
    served = results["inference-last"]["rows"]
    assert {row["batch"] for row in served if row["row"] == "ours fp16"} == set(DRY.batches)
    (same,) = [row for row in served if row["row"].startswith("agreement")]
    assert min(same["pinned"], same["on the device"]) > 0.99999
    assert all(row["gate"] == "passed" for row in results["parity-0"]["rows"] if "gate" in row)
    assert results["final"]["rows"][0]["step"] == 32
    assert "ours / our ceiling, eager:" in printed
    assert "--epochs" in printed


def test_lightlys_loop_is_beside_ours_or_says_why_not(trial):
    results, _ = trial
    peer, ours = results["peers"]["rows"]
    assert ours["images_per_second"] > 0
    if LIGHTLY:
        assert peer["images_per_second"] > 0
    else:
        assert peer["failed"] == "ModuleNotFoundError: No module named 'lightly'"


def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path):
    def python(name, limit, code):
        return Step(name, limit, [sys.executable, "-c", code])

    hangs = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    steps = [
        python("fails", 20, "raise ValueError('not here')"),
        python("hangs", 1, f"print('begun', flush=True); {hangs}"),
        Step("absent", 20, ["no-such-program-anywhere"]),
        Step("shows", 20, [sys.executable, "-c", "print('x'); print('{\"top1\": 0.5}')", "--json"]),
    ]
    rows, logs = Rows(tmp_path / "steps.json", "benchmarks.gpu"), tmp_path / "logs"
    logs.mkdir()
    began = time.monotonic()
    run_group(steps, rows, logs, dict(os.environ), deadline=began + 60)
    run_group([steps[0]], rows, logs, dict(os.environ), deadline=began)
    found = {row["row"]: row for row in rows.rows[:-1]}
    assert found["fails"]["failed"] == "ValueError: not here"
    assert found["hangs"]["failed"] == "more than 1 s; last line: begun"
    assert "no-such-program-anywhere" in found["absent"]["failed"]
    assert found["shows"]["said"] == {"top1": 0.5}
    assert rows.rows[-1] == {"row": "fails", "failed": "no time was left"}
    assert "not here" in (tmp_path / "fails.log").read_text()
    assert len(json.loads(rows.out.read_bytes())["rows"]) == 5


def test_packages_are_laid_out_for_a_machine_without_a_network(tmp_path):
    carried = tmp_path / "carried"
    (carried / "onnxruntime").mkdir(parents=True)
    (carried / "onnxruntime_gpu-1.31.dist-info").mkdir()
    archive = tmp_path / "site.tar.xz"
    subprocess.run(["tar", "-C", carried, "-cJf", archive, "."], check=True)
    for packages in (carried, archive):
        site = tmp_path / f"site-of-{packages.name}"
        assert unpack(packages, site) == {"packages": ["onnxruntime_gpu-1.31.dist-info"]}
        counts = {link_cuda(site)["libraries"] for _ in range(2)}
        assert counts == {len(list((site / "nvidia").rglob("*.so*")))}


def test_the_summary_says_what_the_trial_is_for():
    def rows(**rates):
        found = [{"row": name, "images_per_second": rate, "warm_up_seconds": 40.0} for name, rate in rates.items()]
        return {"rows": found}

    ceiling = {"ceiling: the same views each step, compile all, 512": 1250.0}
    text = summary(
        {
            "training": rows(**{"compile all, 512": 1000.0}, **ceiling),
            "peers": rows(**{"ours from the same files": 900.0, "lightly's documented loop": 300.0}),
            "parity-0": {"rows": [{"row": "export", "failed": "RuntimeError: no"}]},
        }
    )
    assert "ours / lightly's loop, from the same files: 3.00" in text
    assert "ours / our ceiling, compiled: 0.80" in text
    assert "--epochs 4" in text  # 200 s of 1,000 images/s
    assert "failed=RuntimeError: no" in text
