"""`vlformer export`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vlformer_cli.commands.common import Weights, load_model, say


class Format(str, Enum):
    """What `vlformer export` can write."""

    onnx = "onnx"
    torch = "torch"


def export(
    weights: Weights = None,
    format_: Annotated[
        Format, typer.Option("--format", "-f", help="onnx, or torch (a .pt2 of torch.export).")
    ] = Format.onnx,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. [default: outputs/<model>.onnx or .pt2]")
    ] = None,
) -> None:
    """Write the model in a form that runs without vlformer, checked against torch before the file gets its name."""
    from vlformer_cli.engine.export import export_onnx, export_torch

    loaded = load_model(weights, "cpu", 0)
    ending, run = (".onnx", export_onnx) if format_ is Format.onnx else (".pt2", export_torch)
    path = output or Path("outputs") / f"{loaded.config.name}{ending}"
    largest = run(loaded, path)
    say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB; largest difference from torch in logits: {largest:.1e})")
