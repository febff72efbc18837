"""The page at `/`: drop a picture, see its classes, nearest images, features. Nothing comes from elsewhere."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template

from byol.serve.server.service import Service
from byol.text import on_one_line


def page(service: Service) -> str:
    """The page's HTML."""
    encoder = service.opened
    asked = [
        *(["classes"] if service.classifier else []),
        *(["neighbors"] if service.index else []),
        "features",
    ]
    facts = (
        f"{encoder.manifest.architecture.name}, {encoder.image_size} px to {encoder.dim} features, "
        f"{encoder.variant} on {encoder.device}"
    )
    text = files("byol.serve.server").joinpath("page.html").read_text(encoding="utf-8")
    return Template(text).substitute(facts=escape(on_one_line(facts)), routes=" ".join(asked))
