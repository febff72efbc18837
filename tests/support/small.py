"""Small real things for tests: pictures, folders of pictures, configurations. Torch-free."""

from pathlib import Path

import numpy as np
from PIL import Image

from byol.training.config import TrainConfig
from byol.training.data.view_config import ViewConfig

REPOSITORY = Path(__file__).resolve().parents[2]


# A real encoder of torchvision's, where its layers or names matter; some ten times slower.
RESNET18 = {"arch": "resnet18", "stem": "cifar"}


def config(**changes):
    """A run of seconds: timm's smallest ResNet at 16 px, narrow heads, fp32 on the CPU."""
    settings = {
        "arch": "timm:test_resnet",
        "stem": "auto",
        "image_size": 16,
        "canvas_size": 16,
        "projector_hidden": 32,
        "projector_out": 16,
        "predictor_hidden": 32,
        "batch_size": 8,
        "epochs": 2,
        "optimizer": "sgd",
        "lr": 0.5,
        "warmup_epochs": 0.5,
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "view2": ViewConfig(blur=0.1, solarize=0.2),
    }
    return TrainConfig(**{**settings, **changes})


def picture(seed, size=(20, 16)):
    """A smooth random RGB picture of (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def folder(path, classes=("cat", "dog"), per_class=10, start=0):
    """A labelled folder of PNG files; each class has a tint, so that there is something to tell apart."""
    for number, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = np.asarray(picture(start + 100 * number + i)).astype(np.int16)
            pixels[..., number % 3] += 80
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / name / f"{i:03d}.png")
    return path


def traps(path):
    """A current folder in which files are called as modules are: whoever imports one of them fails."""
    path.mkdir()
    for name in ("byol", "torch", "PIL", "onnxruntime", "numpy", "queue", "signal", "socket", "tempfile"):
        (path / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    return path
