"""The `byol` command. Importing this module imports click and nothing heavier: each subcommand is loaded when used."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from contextlib import nullcontext
from types import TracebackType
from typing import Any

import click

from byol import __version__
from byol.children import RANKS, safe_children, speaks_for_job
from byol.console import has_reader, never_silent, note, prepare
from byol.machine import keep_freed_memory
from byol.signals import Ended, Stopped, stopping
from byol.text import Recipe, as_message, first_line, for_terminal, missing, reason_of

# name: (module, one line for `byol --help`). The command is the module's attribute of the same name.
COMMANDS = {
    "train": ("byol.commands.train", "Train an encoder from unlabelled images (needs the `train` extra)."),
    "finetune": (
        "byol.commands.finetune",
        "Fine-tune an encoder on a part of the labels, or train from scratch (needs the `train` extra).",
    ),
    "export": (
        "byol.export.command",
        "Turn a run into a verified, torch-free bundle (needs the `train` extra).",
    ),
    "extract": ("byol.serve.commands.extract", "Compute the features of images with a bundle."),
    "classify": ("byol.serve.commands.classify", "Classify images with the classifier in a bundle."),
    "knn": ("byol.serve.commands.knn", "Weighted k-nearest-neighbour accuracy of a bundle's features."),
    "linear": ("byol.serve.commands.linear", "Linear-probe accuracy of a bundle's features."),
    "transfer": (
        "byol.serve.commands.transfer",
        "Linear-probe and kNN accuracy of a bundle on several data sets.",
    ),
    "neighbors": ("byol.serve.commands.neighbors", "Find the images of a bank that are nearest to each query."),
    "duplicates": ("byol.serve.commands.duplicates", "Find near-duplicates, and test images that training has too."),
    "report": (
        "byol.serve.commands.report",
        "Show runs and bundles as one HTML page: curves, accuracies, neighbours (needs the `report` extra).",
    ),
    "serve": (
        "byol.serve.commands.serve",
        "Answer with a bundle's features and classes over HTTP (needs the `server` extra).",
    ),
    "info": ("byol.serve.commands.info", "Show what a bundle holds; check it against itself."),
    "bench": ("byol.serve.commands.bench", "Measure a bundle on this machine: images/s and latency of every stage."),
    "doctor": (
        "byol.serve.commands.doctor",
        "Show which devices ONNX Runtime can use on this machine, and why not others.",
    ),
    "fetch": ("byol.commands.fetch", "Download a named data set (needs the `train` extra)."),
    "cache": ("byol.commands.cache", "Show or clear the decoded images kept for later runs."),
    "demo": (
        "byol.commands.demo",
        "Train, export and evaluate on real digits, offline (needs the `train` and `demo` extras).",
    ),
}

# Top-level packages an extra brings: a missing one is a set-up problem, reported in one line.
EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "onnxscript": "train",
    "sklearn": "demo",
    "timm": "train",
    "ray": "ray",
    "bokeh": "report",
    "fastapi": "server",
    "starlette": "server",
    "uvicorn": "server",
    "prometheus_client": "server",
}
# What no extra brings is there, unless byol was installed without its dependencies.
NEEDED = {"numpy", "onnx", "onnxruntime", "PIL", "google", "pyarrow", "rich", "safetensors", "scipy", "threadpoolctl"}

# They raise where another package has brought a protobuf that is older than the one onnx was made with.
PROTOBUF = ("google.protobuf", "google.protobuf.runtime_version")


class LazyGroup(click.Group):
    """A group whose commands are imported only when they are invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the work: train, export, serve."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None when there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Click ends without a word after any broken pipe; that is right for standard output alone."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if not has_reader():
                raise
            raise ConnectionError(f"a process that this one works with has ended: {reason_of(error)}") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="byol")
def byol() -> None:
    """Train an image encoder without labels, export it as a verified ONNX bundle, serve it without torch."""


def main() -> None:
    """Run the command line. Exit 0: success, 1: the work failed, 2: the command was wrong.

    Every message passes through `byol.text` here at the latest, whoever composed it.
    """
    prepare()
    keep_freed_memory()
    sys.excepthook = _show_defect
    first = all(os.environ.get(name, "0") == "0" for name in RANKS)
    with safe_children(), stopping(), never_silent() if first else nullcontext():
        _run()


def _command() -> Any:
    try:
        # On Windows click would expand patterns, `~` and variables once more, in quoted arguments too.
        return byol(prog_name="byol", standalone_mode=False, windows_expand_args=False)
    except (Exception, KeyboardInterrupt, Stopped):
        if not speaks_for_job():  # another process has said why
            sys.exit(1)
        raise


def _run() -> None:
    try:
        sys.exit(_command() or 0)
    except click.ClickException as error:
        if not isinstance(error, click.exceptions.NoArgsIsHelpError):  # its message is the help, many lines of our own
            error.message = as_message(error.message)  # type: ignore[misc]
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        note("Aborted!")
        sys.exit(1)
    except ModuleNotFoundError as error:  # raised when a command is loaded, or by what it loads when it runs
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS and package not in NEEDED:
            raise
        note(f"Error: {missing(str(error.name), EXTRAS.get(package, ''), 'this command')}")
        sys.exit(1)
    except (Ended, Stopped) as error:
        note(f"Error: {error}")
        sys.exit(1)
    except Recipe as error:
        click.echo(for_terminal(f"Error: {error}"), err=True)
        sys.exit(1)
    except (ValueError, OSError) as error:  # what a user can cause; anything else is a defect and shows its traceback
        note(f"Error: {error}")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if "start new thread" in str(error):
            note("Error: no more threads can be started; raise the limit on memory or processes")
            sys.exit(1)
        of_torch = ("allocate memory", "out of memory")  # on a CPU, on a GPU
        if (why := _why_not_loaded(error)) is not None:
            note(why)
            sys.exit(1)
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in of_torch):
            raise
        note(f"Error: not enough memory: {error}; use smaller images or batches")
        sys.exit(1)
    except Exception as error:
        if (why := _why_not_loaded(error)) is None:
            raise
        note(why)
        sys.exit(1)


def _why_not_loaded(error: Exception) -> str | None:
    """What happened to an installed library that did not load, and what to do; None for a defect."""
    by = str(error.name) if isinstance(error, ImportError) else type(error).__module__
    if by in PROTOBUF:
        return f"Error: onnx cannot be loaded: {first_line(error)}; reinstall onnx and protobuf"
    if "torchvision::" in str(error) or "torchvision/_C" in str(error):
        return f"Error: torchvision is not for this torch: {first_line(error)}; reinstall both, together"
    if not isinstance(error, ImportError):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return "Aborted!"
        cause = cause.__cause__ or cause.__context__
    if "initialization failed" in str(error):  # all that compiled modules say when interrupted
        return "Aborted while loading libraries, or one of them is damaged; run the same command again"
    if "shared object" in str(error):
        return f"Error: cannot load a library: {error}; raise the memory limit, or reinstall the library"
    return None


def _show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback without the terminal codes that quoted messages and lines may hold."""
    click.echo(for_terminal("".join(traceback.format_exception(kind, error, trace))), err=True, nl=False)


if __name__ == "__main__":
    main()
