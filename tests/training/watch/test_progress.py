"""What people see while a run goes on: time left, lines and their number, the bar's width."""

import io
import time

import pytest
from rich.console import Console

from byol.console import training_bar
from byol.text import duration
from byol.training.watch.progress import Clock, Reporter


class Hands:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def record(step, **more):
    speeds = {"images_per_second": 99.0, "wall_images_per_second": 90.0}
    return {"step": step, "epoch": step / 4, "loss": 1.25, **speeds, "tau": 0.99, **more}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (41.4, "41 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (7200, "2 h"), (12_000, "3 h 20 min"),
     (172_700, "47 h 58 min"), (190_800, "2 d 5 h"), (172_800, "2 d")],
)  # fmt: skip
def test_durations_are_rounded_to_what_matters(seconds, words):
    assert duration(seconds) == words


def test_time_left_is_told_from_the_first_step_on_and_leaves_out_what_the_first_one_compiled():
    hands = Hands()
    clock = Clock(total=100, start=40, now=hands)
    assert clock.left() is None
    hands.now = 35.0
    clock.advance(41)
    assert clock.left() == 35.0 * 59  # all that is known
    hands.now = 45.0
    clock.advance(43)
    assert clock.left() == 5.0 * 57
    clock.advance(100)
    assert (clock.left(), clock.text()) == (0, "")


def test_a_log_gets_a_line_a_minute_and_every_accuracy(monkeypatch, capsys):
    hands = Hands()
    monkeypatch.setattr(time, "monotonic", hands)
    reporter = Reporter(total=1000, start=0)
    reporter.report({"step": 0, "epoch": 0.0, "knn_top1": 0.25, "knn_queries": 100, "knn_bank": 50, "knn_classes": 10})
    for step in range(1, 201):
        hands.now += 1.0
        reporter.advance(step)
        reporter.report(record(step, **({"knn_top1": 0.36, "knn_queries": 100} if step == 50 else {})))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "before training  kNN 25.0 +- 4.3 %"
    shown = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in shown] == [f"{step}/1000" for step in (*range(1, 11), 50, 110, 170)]
    assert shown[10] == (
        "step 50/1000  epoch 12.5  loss 1.2500  90 images/s  kNN 36.0 +- 4.8 % (untrained 25.0)  16 min left"
    )
    assert sum("to go: ends about" in line for line in lines) == 1  # after ten steps, as it takes 16 minutes


def test_a_short_run_is_not_warned_of_its_length(monkeypatch, capsys):
    hands = Hands()
    monkeypatch.setattr(time, "monotonic", hands)
    reporter = Reporter(total=100, start=0)
    for step in range(1, 21):
        hands.now += 1.0
        reporter.advance(step)
    assert "to go" not in capsys.readouterr().err


def test_a_resumed_run_still_compares_with_the_untrained_encoder(capsys):
    reporter = Reporter(total=8, start=4, untrained=0.265)
    reporter.report(record(8, knn_top1=0.36, knn_queries=250))
    assert "kNN 36.0 +- 3.0 % (untrained 26.5)" in capsys.readouterr().err


def test_the_bar_fits_eighty_columns():
    bar = training_bar(1_234_567, 1_000_000)
    bar.update(bar.task_ids[0], description="loss 0.3762  kNN 45.3 %", left="23 h 59 min left")
    seen = io.StringIO()
    Console(file=seen, width=80, force_terminal=False).print(bar.get_renderable())
    lines = seen.getvalue().splitlines()
    assert len(lines) == 1
    assert len(lines[0]) <= 80
    assert "23 h 59 min left" in lines[0]
    assert "1000000/1234567" in lines[0]
    assert "kNN 45.3 %" in lines[0]
