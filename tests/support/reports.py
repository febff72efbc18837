"""Runs and bundles as a report finds them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from byol.bundle.folder import Bundle
from byol.training.run_folder import RunFolder
from tests.support.small import config, picture
from tests.support.tiny import write_tiny_bundle

CPU = ("--device", "cpu")


def write_run(path: Path, data: str = "photos", images: int = 80, **changes: object) -> Path:
    """A run folder of 20 lines of metrics, as `byol train` writes it, without the training."""
    run = RunFolder(path)
    run.create(config(**changes), {"data": {"name": data, "images": images, "digest": "0" * 16}, "skipped": []})
    for step in range(1, 21):
        run.log({"step": step, "epoch": step / 10, "loss": 4 / step, "lr": 0.1, "tau": 0.99, "std_ratio": 0.9})
    picture(0, (64, 32)).save(run.views)
    return path


def write_bundle_of(run: Path, path: Path, steps: int = 20, seed: int = 0) -> Path:
    """A tiny bundle whose training summary is that of a run."""
    write_tiny_bundle(path, seed=seed)
    manifest, facts = Bundle.open(path).manifest, json.loads((run / "config.json").read_text())
    digest = hashlib.sha256(json.dumps(facts["config"], sort_keys=True).encode()).hexdigest()
    assert manifest.training is not None
    training = replace(
        manifest.training,
        data=facts["data"]["name"],
        images=facts["data"]["images"],
        steps=steps,
        config_sha256=digest,
    )
    replace(manifest, training=training).write(path)
    return path
