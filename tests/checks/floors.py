"""The torch-free tests in an environment of their own, with the lowest versions that pyproject.toml allows.

    make floors

Of the extras, `make oldest-torch` runs torch's floors; the others are those of features that are used (see there).
"""

from __future__ import annotations

import sys
import tempfile

from tests.support.environments import environment, floors
from tests.support.torch_free import NEEDED, run


def main() -> int:
    """Make the environment, run the tests; the status of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"floors on Python {sys.version.split()[0]}: {', '.join(floors())}", flush=True)
        return run(environment(folder, [*floors(), *NEEDED], sys.executable))


if __name__ == "__main__":
    sys.exit(main())
