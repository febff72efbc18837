"""What is printed beside results."""

import pytest

from byol import console


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 59.0, 61.0, 61.0, 62.0])
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    with console.progress("extract", 5000) as advance:
        for _ in range(3):
            advance(1000)
    assert capsys.readouterr().err == "extract: 2,000 of 5,000\n"
