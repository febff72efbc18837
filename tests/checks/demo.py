"""Checks the demo's claim on the results that `make demo` left: with few labels the trained encoder is ahead."""

import json
import sys
from pathlib import Path

from byol.commands.demo import FEW_LABELS

if __name__ == "__main__":
    raw, untrained, trained = json.loads((Path(sys.argv[1]) / "results.json").read_text())
    for name in (f"{kind}_{count}" for kind in ("knn", "linear") for count in FEW_LABELS):
        print(f"{name}: trained {trained[name]}, untrained {untrained[name]}, raw pixels {raw[name]}")
        if trained[name] <= max(raw[name], untrained[name]):
            sys.exit(f"{name}: the trained encoder is not ahead")
