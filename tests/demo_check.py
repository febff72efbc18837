"""Checks the demo's claim on the results that `make demo` left: with few labels the trained encoder is ahead.

By kNN with five labels it is ahead of the untrained one; there raw pixels are level with it, within what another
rounding of the same training changes.
"""

import json
import sys
from pathlib import Path

from byol.demo import FEW_LABELS

if __name__ == "__main__":
    raw, untrained, trained = json.loads((Path(sys.argv[1]) / "results.json").read_text())
    for name in (f"{kind}_{count}" for kind in ("knn", "linear") for count in FEW_LABELS):
        print(f"{name}: trained {trained[name]}, untrained {untrained[name]}, raw pixels {raw[name]}")
        if trained[name] <= max(untrained[name], 0 if name == "knn_5" else raw[name]):
            sys.exit(f"{name}: the trained encoder is not ahead")
