"""The table of all settings in docs/recipe.md, from the dataclass and the sentences under its fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from typing import Any


def table(config: Any, leave_out: tuple[str, ...] = ()) -> list[str]:
    """The lines of a Markdown table: name, default, meaning, of every field of a dataclass."""
    body = ast.parse(inspect.getsource(config)).body[0]
    assert isinstance(body, ast.ClassDef)
    meanings = {}
    for field, under in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(under, ast.Expr) and isinstance(field.target, ast.Name):
            assert isinstance(under.value, ast.Constant)
            meanings[field.target.id] = " ".join(str(under.value.value).split())
    plain = json.loads(json.dumps(dataclasses.asdict(config())))
    rows = [
        f"| `{name}` | {_shown(value)} | {meanings[name].replace('|', chr(92) + '|')} |"
        for name, value in plain.items()
        if name not in leave_out
    ]
    return ["| setting | default | |", "|---|---|---|", *rows]


def _shown(value: object) -> str:
    return "see below" if isinstance(value, dict) else f"`{json.dumps(value)}`" if value != "" else ""
