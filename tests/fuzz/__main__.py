"""`make fuzz`: minutes of hostile input for everything that reads a stranger's file.

    python -m tests.fuzz [--seconds 120] [--only TEXT]

Every module beside this one has a function `run(seconds, seed, most)` that makes small valid inputs, spoils them, and
raises when one gets more than a refusal: a traceback, a crash, a hang, memory. It goes on for `seconds`, or for `most`
inputs where that is given, and returns how many of them were "refused", and what became of the others. What is found
becomes a small maker of that input in a test.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import click


def modules() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


@click.command()
@click.option("--seconds", default=120.0, show_default=True, help="For each of the readers.")
@click.option("--only", default="", help="Readers whose module's name holds this text.")
def main(seconds: float, only: str) -> None:
    for name in modules():
        if only in name:
            click.echo(f"{name}: {seconds:g} s")
            importlib.import_module(f"tests.fuzz.{name}").run(seconds)


if __name__ == "__main__":
    main()
