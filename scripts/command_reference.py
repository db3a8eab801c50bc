"""Writes docs/commands.md, the command reference, from the commands' own signatures and help texts.

python scripts/command_reference.py            # writes docs/commands.md
python scripts/command_reference.py --check    # exit code 1 if the file is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from vlformer_cli.app import app, options

FILE = Path(__file__).resolve().parents[1] / "docs/commands.md"
HEAD = """# Commands

<!-- Written by scripts/command_reference.py from the commands' help texts. Do not edit. -->

Every command prints this with `--help`. Exit codes: 0 done, 2 wrong usage, 1 anything else. With `--json`, stdout holds
one JSON document; progress and messages go to stderr. `vlformer --install-completion` sets up the shell's completion.
"""
TYPES = {bool: "", int: "integer", float: "number", str: "text", Path: "path"}
DEFAULT = re.compile(r"\s*\[default: (.*)\]$")
"""How a help text states a default that the signature does not hold."""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, *_command("vlformer", options, "COMMAND")]
    for command in app.registered_commands:
        assert command.callback is not None
        parts += _command(f"vlformer {command.name}", command.callback)
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:  # type: ignore[union-attr]
            assert command.callback is not None
            parts += _command(f"vlformer {group.name} {command.name or command.callback.__name__}", command.callback)
    return "\n".join(parts).rstrip() + "\n"


def _command(name: str, function: Callable[..., Any], arguments: str = "") -> Iterator[str]:
    hints = get_type_hints(function, include_extras=True)
    rows = []
    for parameter in inspect.signature(function).parameters.values():
        kind, info = _parts(hints[parameter.name])
        if isinstance(info, ArgumentInfo):
            arguments = info.metavar or parameter.name.upper()
        rows.append(_row(parameter, kind, info))
    yield f"## {name}\n\n{inspect.getdoc(function)}\n\n    {name} [OPTIONS] {arguments}".rstrip()
    yield "\n| | value | meaning | default |\n|---|---|---|---|"
    yield from rows
    yield ""


def _parts(hint: Any) -> tuple[Any, OptionInfo | ArgumentInfo]:
    """The type without None, and what Typer is told of the parameter."""
    assert get_origin(hint) is Annotated
    kind, info = get_args(hint)[:2]
    inner = [one for one in get_args(kind) if one is not NoneType]
    return (inner[0] if NoneType in get_args(kind) else kind), info


def _row(parameter: inspect.Parameter, kind: Any, info: OptionInfo | ArgumentInfo) -> str:
    first = [info.default] if isinstance(info.default, str) else []  # Typer keeps an option's first name there
    names = [*first, *(info.param_decls or ())] or [info.metavar or parameter.name.upper()]
    text = info.help or ""
    stated = DEFAULT.search(text)
    default = stated[1] if stated else _written(parameter.default)
    cells = [
        ", ".join(f"`{name}`" for name in names),
        _value(kind, info),
        DEFAULT.sub("", text),
        "required" if isinstance(info, ArgumentInfo) else default,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _written(default: Any) -> str:
    return "" if default is None or isinstance(default, bool) else f"`{default}`"


def _value(kind: Any, info: OptionInfo | ArgumentInfo) -> str:
    if get_origin(kind) is list:
        return f"{_value(get_args(kind)[0], info)}, repeatable"
    if issubclass(kind, Enum):
        return " or ".join(f"`{one.value}`" for one in kind)
    least, most = info.min, info.max
    bounds = f" {least} to {most}" if most is not None else f" from {least}" if least is not None else ""
    return TYPES[kind] + bounds


def main() -> None:
    text = reference()
    if "--check" not in sys.argv:
        FILE.write_text(text, encoding="utf-8")
    elif not FILE.is_file() or FILE.read_text(encoding="utf-8") != text:
        sys.exit(f"{FILE} is out of date: run python scripts/command_reference.py")


if __name__ == "__main__":
    main()
