"""Freed memory is kept: the pages of a block that is allocated again and again fault once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from byol.machine import keep_freed_memory

BLOCKS = """
import resource
from byol.machine import keep_freed_memory
{call}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(48 * 2**20)  # zeroed, so every page is touched
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    words = [sys.executable, "-c", BLOCKS.format(call=call)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="not glibc")
def test_a_block_faults_once_not_every_time() -> None:
    assert faults("keep_freed_memory()") < faults("") / 4
