"""The `byol` command inside the test process: quick, and through the same `main` that the installed command runs."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import unicodedata
from dataclasses import dataclass
from unittest import mock

from byol.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit status, stdout, stderr."""

    code: int
    out: str
    err: str


def byol(*arguments: object) -> Outcome:
    """Run `byol ARGUMENTS...`; anything but a clean exit fails the test with its traceback."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["byol", *(os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())


def harmless(shown: str) -> bool:
    turns = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    kinds = {unicodedata.category(c) for c in shown}
    return not kinds & {"Cc", "Cs", "Zl", "Zp"} and not turns & {unicodedata.bidirectional(c) for c in shown}
