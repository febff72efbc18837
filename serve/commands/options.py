"""Options shared by the serving commands, and how they show results. Light to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from byol.console import show_json, show_table
from byol.limits import MAX_BATCH_SIZE
from byol.serve.limits import VARIANT_NAMES
from byol.serve.providers.installed import DEVICE_NAMES, is_plugin

if TYPE_CHECKING:
    from byol.serve.extract.engine import Options

F = TypeVar("F", bound=Callable[..., Any])
BUNDLE = click.Path(exists=True, path_type=Path)  # `Bundle.open` says what else it is: a run, its checkpoint


class Device(click.Choice[str]):
    """Where to compute: a known name, or that of an installed plug-in for ONNX Runtime."""

    def __init__(self) -> None:
        super().__init__(DEVICE_NAMES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name; an unknown one ends the command."""
        return value if is_plugin(value) else super().convert(value, param, ctx)


device_option = click.option(
    "--device",
    type=Device(),
    default="auto",
    show_default=True,
    help="Where to run; auto: CUDA where it works, else the CPU; any other fails where it does not work. Installed "
    "onnxruntime-ep-NAME packages go by NAME.",
)
batch_option = click.option(
    "--batch-size", type=click.IntRange(1, MAX_BATCH_SIZE), help="Images per run  [default: what suits the device]."
)


def variant_option(what: str) -> Callable[[F], F]:
    """`--variant`: which precision; `what` is the first half of its help."""
    return click.option(
        "--variant",
        type=click.Choice(VARIANT_NAMES),
        default="fp32",
        show_default=True,
        help=f"{what}; auto: fp16 on CUDA, int8 on CPUs that multiply bytes, where the bundle has them; bf16: the fp32 "
        "one computed in bf16, where a plug-in does that.",
    )


on_error_option = click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="What to do with an unreadable image: skip and list it, or stop.",
)
max_errors_option = click.option(
    "--max-errors", type=click.IntRange(min=0), help="Stop when more images than this cannot be read."
)
threads_option = click.option(
    "--decode-threads", type=click.IntRange(1, 1024), help="Threads that decode  [default: one per usable core]."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")


class Positive(click.ParamType[float | str]):
    """A finite number above 0 (click's own range lets nan pass), or the word `auto` where that is allowed."""

    def __init__(self, auto: bool = False) -> None:
        self.auto = auto
        self.name = "auto|FLOAT" if auto else "FLOAT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """The number, or the word."""
        if self.auto and value == "auto":
            return "auto"
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            self.fail(f"{value!r} is not a positive number{' or auto' if self.auto else ''}", param, ctx)
        return number


def show(values: dict[str, Any], as_json: bool) -> None:
    """The results of a command: one JSON object, or a table without what is None, in which shares are percentages."""
    if as_json:
        show_json(values)
        return
    percent = {"top1", "top5", "mean_per_class"}
    known = {key: value for key, value in values.items() if value is not None}
    show_table([(key, f"{value:.2%}" if key in percent else value) for key, value in known.items()])


def extraction_options(
    on_error: str, max_errors: int | None, decode_threads: int | None, dtype: str = "float32", thumbnails: int = 0
) -> Options:
    """The values of the options above. Raises `UsageError` when they contradict each other."""
    from byol.serve.extract.engine import Options

    if on_error == "fail" and max_errors:
        raise click.UsageError("--on-error fail and --max-errors contradict each other; leave one out")
    return Options(dtype, decode_threads or 0, 0 if on_error == "fail" else max_errors, thumbnails)
