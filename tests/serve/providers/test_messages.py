"""What ONNX Runtime logs while a call fails silently, and what others write meanwhile."""

from __future__ import annotations

import errno
import os
import tempfile
import threading

import pytest

from byol.serve.providers.messages import said_during

SENTENCE = (
    "\x1b[1;31m2026-11-30 17:33:26.005302556 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/home/me/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot open "
    "shared object file: No such file or directory\n\x1b[m"
)
PLAIN = "2026-11-30 17:33:26.1 [E:onnxruntime:, ep.cc:1 Compile] Wrong value f33\n"


def write(*texts: str) -> None:
    for text in texts:
        os.write(2, text.encode())


def test_the_first_error_is_the_reason_and_the_rest_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    reason = said_during(lambda: write("ours\n", SENTENCE, "half a line", "\n", PLAIN, "last\n"))
    library = "libonnxruntime_providers_cuda.so with error: libcudnn.so.9"
    assert reason == f"Failed to load library {library}: cannot open shared object file: No such file or directory"
    assert capfd.readouterr().err == "ours\nhalf a line\nlast\n"
    write("behind\n")
    assert capfd.readouterr().err == "behind\n"


def test_a_log_without_colours_and_one_without_errors() -> None:
    assert said_during(lambda: write("2026-11-30 17:33:26.1 [W:onnxruntime:, a.cc:1 f] a warning\n", PLAIN)) == (
        "Wrong value f33"
    )
    assert said_during(lambda: write("nothing\n")) == ""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_lost_when_the_call_raises(capfd: pytest.CaptureFixture[str], error: type[BaseException]) -> None:
    def fail() -> None:
        write("before\n")
        raise error

    if error is RuntimeError:
        assert said_during(fail) == ""
    else:
        with pytest.raises(error):
            said_during(fail)
    write("after\n")
    assert capfd.readouterr().err == "before\nafter\n"


def test_without_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byol.serve.providers.messages.STDERR", 10_000)
    assert said_during(lambda: None) == ""


def test_without_a_folder_to_write_in(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def no_folder() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/']")

    with monkeypatch.context() as patch:  # pytest itself needs one afterwards
        patch.setattr(tempfile, "_get_default_tempdir", no_folder)
        patch.setattr(tempfile, "tempdir", None)
        assert said_during(lambda: write(PLAIN)) == ""
    assert capfd.readouterr().err == ""


def test_threads_take_turns(capfd: pytest.CaptureFixture[str]) -> None:
    reasons: dict[int, str] = {}

    def work(number: int) -> None:
        reasons[number] = said_during(lambda: write(PLAIN.replace("f33", str(number)), f"{number}\n"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reasons == {number: f"Wrong value {number}" for number in range(8)}
    assert sorted(capfd.readouterr().err.split()) == [str(number) for number in range(8)]
