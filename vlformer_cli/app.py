"""The Typer app: registers the commands, nothing else."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from vlformer_cli import __version__
from vlformer_cli.commands import errors
from vlformer_cli.commands.data import data
from vlformer_cli.commands.evaluate import evaluate
from vlformer_cli.commands.export import export
from vlformer_cli.commands.info import info
from vlformer_cli.commands.predict import predict
from vlformer_cli.commands.prepare_data import prepare_data
from vlformer_cli.commands.train import train

app = typer.Typer(
    name="vlformer",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Referring image segmentation: name a thing in a picture, get its mask.",
)
app.command("prepare-data")(prepare_data)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("predict")(predict)
app.command("export")(export)
app.command("info")(info)
app.add_typer(data, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vlformer {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before the command."""
    errors.show_tracebacks(debug)


def main() -> None:
    """The console script: exit code 0 done, 2 wrong usage, 1 anything else."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold bytes that are no text
    sys.exit(errors.run(app))


if __name__ == "__main__":
    main()
