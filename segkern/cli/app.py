"""The commands put together, and errors turned into messages."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from segkern.cli.about import info, models
from segkern.cli.crf import crf, tune
from segkern.cli.names import Commands, WithCrf
from segkern.cli.pages import demo, report
from segkern.cli.train import train
from segkern.cli.use import evaluate, predict

app = typer.Typer(
    name="segkern",
    cls=Commands,
    help="Train, evaluate and use segmentation networks on segkern's kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from segkern import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")
    ] = False,
) -> None:
    """Options before the command."""


for command in (info, models, train):
    app.command()(command)
for command in (evaluate, predict):
    app.command(cls=WithCrf)(command)
app.command()(crf)
app.command("crf tune")(tune)
for command in (report, demo):
    app.command()(command)


def run(arguments: list[str]) -> int:
    """Run one command; the exit status."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(args=arguments, prog_name="segkern")
    except SystemExit as stop:
        return _status(stop.code)
    except KeyboardInterrupt:
        print("segkern: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the one place where errors meet the user; unknown ones go on
        status = _user_error(error)
        if status is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"segkern: {error}", file=sys.stderr)
        return status
    return 0


def _status(code: object) -> int:
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


def _user_error(error: Exception) -> int | None:
    """The exit status of an error that its text explains; None for any other."""
    from segkern.data import DatasetError
    from segkern.engine.errors import EngineError
    from segkern.models import WeightsError
    from segkern.models._forest import MissingExtra

    if isinstance(error, EngineError):
        return error.exit_code
    if isinstance(error, (DatasetError, WeightsError, MissingExtra, OSError)):
        return 2
    return None
