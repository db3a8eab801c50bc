"""`vlformer train`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlformer_cli.commands.common import say
from vlformer_cli.types import PeerLostError, VLFormerError

if TYPE_CHECKING:
    from vlformer_cli.engine.train import Trained


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML file; start from those in configs/.")] = Path(
        "configs/tiny.yaml"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder. (default: runs/<model name>)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last whole checkpoint.")] = False,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", help="Start from a vlformer or Mask2Former file, embedded, timm:NAME or open_clip:M/TAG."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = None,
    gpus: Annotated[
        int, typer.Option("--gpus", min=1, help="Processes on this machine, one per GPU, or as many on the CPU.")
    ] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    node_rank: Annotated[
        int | None, typer.Option("--node-rank", min=0, help="The number of this machine; 0 is at the endpoint.")
    ] = None,
    rdzv_endpoint: Annotated[
        str | None, typer.Option("--rdzv-endpoint", help="HOST:PORT where the machines meet, the same on all.")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", min=0, help="Start a failed job again so often, from its last checkpoint.")
    ] = 0,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes", min=0, help="Stop with a checkpoint before so many minutes are over, restarts included."
        ),
    ] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Checkpoints to keep. (default: train.keep)")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print config, parameters, memory and one step's time; train nothing.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: change one field of the config, e.g. train.steps=200.")
    ] = None,
) -> None:
    """Train a model from a config; the run folder gets weights, checkpoints, logs, curves and a manifest."""
    from vlformer_cli.config import load_config

    shorthands = {"init": init, "train.device": device, "train.keep": keep}
    # quoted, as --set takes YAML, in which a name of a file may mean another thing
    given = {name: value for name, value in shorthands.items() if value is not None}
    options = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]
    resolved = load_config(config, [*(overrides or ()), *options])
    folder = output or Path("runs") / resolved.model.name
    if dry_run:
        from vlformer_cli.engine.dry_run import dry_run as look

        print(look(resolved))
        return

    from vlformer_cli.engine.launch import Job, launch

    job = Job(gpus, nodes, node_rank, rdzv_endpoint, max_restarts)
    job.refuse_to_multiply(os.environ)
    if job.needs_torchrun and not job.is_started(os.environ):
        job.check(resolved.train.device)
        launch(job, sys.argv[1:])
        return
    from vlformer_cli.engine.distributed import let_the_cause_speak
    from vlformer_cli.engine.stop import minutes_left
    from vlformer_cli.engine.train import train as run

    try:
        left = minutes_left(max_minutes, os.environ)
        _report(run(resolved, folder, resume=resume, max_minutes=left), folder)
    except PeerLostError:
        let_the_cause_speak()
        raise


def _report(trained: Trained, folder: Path) -> None:
    """What came of it; raises VLFormerError where a signal ended it."""
    from vlformer_cli.report.live import duration

    if trained.is_first_process:
        best = "" if trained.best is None else f"\nbest: {trained.best_text} -> {folder / 'best.safetensors'}"
        skipped = f", {trained.skipped} steps skipped" if trained.skipped else ""
        say(f"{trained.step} steps, {trained.expressions} expressions in {duration(trained.seconds)}{skipped}{best}")
        say(f"weights: {trained.weights}\nlog: {folder / 'metrics.jsonl'}\ncurves: {folder / 'curves.png'}")
    if trained.stopped_by is not None:
        message = (
            f"stopped by {trained.stopped_by} at step {trained.step}, a checkpoint is written: go on with --resume"
        )
        if not trained.is_planned:
            raise VLFormerError(message)
        if trained.is_first_process:
            say(message)
