"""Child Python processes: they import what this one does, and nothing from the current folder. Torch-free.

With `-m` and `-c`, Python searches the current folder first: it would run a `queue.py` beside somebody's pictures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The number of a process among those of a job, as launchers set it.
RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
MEETING = "BYOL_MEETING"  # where the processes of `byol train --nproc` find each other; unset under another launcher
GRACE = 5.0  # seconds in which a process that is asked to end may clean up
ROOT = str(Path(__file__).resolve().parent.parent)


@contextmanager
def safe_children() -> Iterator[None]:
    """Within the block, every Python process started ignores the current folder, whoever starts it.

    torch's launcher, torch.compile, `multiprocessing` and Ray all pass the environment on. The folder that byol itself
    was found in (`python -m byol` in a checkout) stays on the path.
    """
    changed = {"PYTHONSAFEPATH": "1"}
    if sys.path and os.path.realpath(sys.path[0] or os.curdir) == ROOT:
        changed["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def speaks_for_job() -> bool:
    """Whether this process should report its failure: of those started by `byol train --nproc`, the first to ask."""
    if MEETING not in os.environ:
        return True
    place, me = Path(os.environ[MEETING].removeprefix("file://") + ".failed"), str(os.getpid())
    try:
        if place.exists():
            return place.read_text() == me
        with place.open("x") as file:
            file.write(me)
    except FileExistsError:  # another one was quicker
        return False
    except OSError:  # better twice than never
        pass
    return True


def python_running(code: str) -> list[str]:
    """The start of a command line: this Python, with this process's search path for modules, running `code`."""
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    return [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {path!r}\n{code}"]


_COMMAND = """
from byol.children import end_with_parent
end_with_parent()
from byol.cli import main
main()
"""


def run_command(*words: str) -> str:
    """Run `byol WORDS...` as another process, which ends when this one does, even if it is killed.

    Returns why it failed, in one line: the last that it said; empty where it succeeded.
    """
    command = [*python_running(_COMMAND), *words]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **streams, text=True, errors="replace") as child:  # type: ignore[call-overload]
        try:
            said: str = child.stderr.read()
            status: int = child.wait()
        except BaseException:  # a signal: the child may have been sent none
            _end(child)
            raise
    last = said.strip().rpartition("\n")[2].removeprefix("Error: ")
    return "" if status == 0 else last or f"its process ended with status {status} (was it killed for memory?)"


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()


def end_with_parent() -> None:
    """End this process, as SIGTERM does, once its standard input ends: whoever started it holds the other end."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
