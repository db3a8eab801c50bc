"""Messages for the person."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

WIDE = 200  # characters


def say(message: str) -> None:
    """A line on stderr, so that stdout stays clean for `--json`."""
    print(message, file=sys.stderr, flush=True)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stderr; where that is no terminal, as wide as it needs to be."""
    table = Table(*columns, box=None, header_style="dim", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(stderr=True)
    console.print(table, width=None if console.is_terminal else WIDE)
