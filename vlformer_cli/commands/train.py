"""`vlformer train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlformer_cli.commands.common import say
from vlformer_cli.types import VLFormerError


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML file; start from those in configs/.")] = Path(
        "configs/tiny.yaml"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder. [default: runs/<model name>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Processes on this machine; only 1 so far.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines; only 1 so far.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: change one field of the config, e.g. train.steps=200.")
    ] = None,
) -> None:
    """Train a model from a config; the run folder gets weights, checkpoints, logs and a manifest."""
    from vlformer_cli.config import load_config

    if gpus * nodes > 1:
        raise VLFormerError(f"--gpus {gpus} --nodes {nodes}: this version trains in one process only; leave them out")
    resolved = load_config(config, overrides or ())
    folder = output or Path("runs") / resolved.model.name
    from vlformer_cli.engine.train import train as run

    weights = run(resolved, folder, resume=resume)
    say(f"weights: {weights}\nlog: {folder / 'metrics.jsonl'}")
