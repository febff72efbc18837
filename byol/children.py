"""Child Python processes: they import what this one does, and nothing from the current folder. Torch-free.

With `-m` and `-c`, Python searches the current folder first: it would run a `queue.py` beside somebody's pictures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The number of a process among those of a job, as launchers set it.
RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
MEETING = "BYOL_MEETING"  # where the processes of `byol train --nproc` find each other; unset under another launcher
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
