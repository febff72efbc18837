"""The tests that need no torch, in the environment that runs this; `requirements-cpu.txt` and `NEEDED` suffice.

    python -m tests.checks.torch_free

`make floors` runs them with the lowest versions, `.github/workflows/ci.yml` on other systems and Pythons.
"""

import sys

from tests.support.torch_free import run

if __name__ == "__main__":
    sys.exit(run(sys.executable))
