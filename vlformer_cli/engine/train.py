"""Training: a loop one can read from top to bottom.

A run folder holds `config.yaml`, `manifest.json`, `state.json` (how the last job ended), `metrics.jsonl`, `curves.png`,
`checkpoints/` (to resume from), `model.safetensors` (to use: the newest weights) and `best.safetensors` (the best on
the validation split). A batch and the places that the loss looks at are functions of (seed, step), so that a resumed
run sees what an uninterrupted one would have seen, and any number of processes the same step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vlformer_cli.config import Config
from vlformer_cli.data.canvas import canvas_of, on_canvas
from vlformer_cli.engine.distributed import World, joined, world_from
from vlformer_cli.engine.introduce import introduce
from vlformer_cli.engine.launch import Job
from vlformer_cli.engine.run import Run
from vlformer_cli.engine.run_folder import alone_in
from vlformer_cli.engine.run_state import state_recorded
from vlformer_cli.engine.settled import said_again
from vlformer_cli.engine.stop import StopRequest
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.report.live import TrainDisplay
from vlformer_cli.types import Batch

SLOW_DISK = 50e6
"""Bytes a second, to guess how long the first checkpoint takes; the later ones are timed."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a call of `train` came to."""

    weights: Path
    step: int
    expressions: int
    stopped_by: str | None
    """Why it ended before the last step; None: it did not."""
    is_planned: bool
    """It ended at its last step or its time limit, and not by a signal."""
    is_first_process: bool
    best: tuple[float, int] | None
    """The best value of `train.best_by` on the validation split, and its step."""
    best_text: str
    seconds: float
    skipped: int


def train(
    config: Config,
    output: Path,
    *,
    resume: bool = False,
    max_minutes: float | None = None,
    world: World | None = None,
) -> Trained:
    """Trains in the folder `output` until the last step, a signal or the time limit; then writes all there is.

    Raises VLFormerError if `output` holds a run already and `resume` is False, if the config changed since, or if the
    loss is not finite `train.max_bad_steps` times in a row.
    """
    world = world or world_from(os.environ)
    settings = config.train
    stop = StopRequest(max_minutes, alone=world.size == 1, follows_parent=Job.is_started(os.environ))
    with joined(world), said_again(world, os.environ), alone_in(output, world), stop:
        # on machines whose processes did not fail, torchrun counts no restart
        (restarts,) = world.max([world.restarts])
        run = Run(config, output, world, resume=resume or restarts > 0)
        if world.is_first:
            introduce(run)
        name, quiet = config.model.name, not world.is_first
        batches = run.batches(lambda: stop.is_wanted(evaluates=False))
        with (
            state_recorded(run, stop),
            run,
            TrainDisplay(name, settings.steps, quiet=quiet) as display,
            closing(batches) as dealt,
        ):
            checkpoint_takes = run.state_bytes / SLOW_DISK
            with display.paused():
                stop.took("evaluation", run.catch_up())
            done: float | None = None
            for loaded in dealt:
                # a step begins with the wait for its batch; the first one's is for processes that start
                began = done or time.monotonic()
                agreed = agree(world, loaded, stop, evaluates=run.due(settings.eval_every, after=1))
                if agreed.stops:
                    break
                counts = agreed.counts
                result = run.take(agreed.batches, counts, cut=agreed.cut, unreadable=agreed.unreadable)
                display.update(run.now(result))
                if run.due(settings.log_every):
                    run.log_step(result, display.rates()[0])
                took = time.monotonic() - began
                stop.took("step", took)
                stop.guess("checkpoint", checkpoint_takes)
                # processes share an evaluation's expressions as they do a step's, which takes longer for each
                stop.guess("evaluation", took * run.evaluated_samples / max(1, int(counts.expressions)))
                if run.due(settings.save_every):
                    stop.took("checkpoint", run.save())
                if run.due(settings.eval_every):
                    with display.paused():
                        stop.took("evaluation", run.evaluate())
                done = time.monotonic()
            stop.agree(world.gather(stop.reason))
            return finish(run, None if run.is_finished else stop)


class Agreed(NamedTuple):
    """What the processes of a job have to know of each other before a step."""

    batches: list[Batch]
    """This process's, on the canvas that all have."""
    counts: Counts
    """What the step's means are taken over."""
    cut: int
    """Expressions."""
    unreadable: int
    """Pictures that others stand in for."""
    stops: bool
    """Whether one of them wants to stop before the step."""


def agree(world: World, batches: Sequence[Batch], stop: StopRequest, *, evaluates: bool) -> Agreed:
    """Asks all processes. No batches: this one has to stop, and waits for them no longer."""
    height, width = world.max(canvas_of(batches))
    expressions, meant = Counts.on_host(batches)
    cut = float(sum(batch.cut for batch in batches))
    wanted = float(stop.is_wanted(evaluates=evaluates))
    unreadable = float(sum(len(batch.unreadable) for batch in batches))
    expressions, meant, cut, unreadable, stops = world.sum([expressions, meant, cut, unreadable, wanted])
    on_one_canvas = [on_canvas(batch, height, width) for batch in batches]
    return Agreed(on_one_canvas, Counts.from_numbers(expressions, meant), int(cut), int(unreadable), stops > 0)


def finish(run: Run, stop: StopRequest | None) -> Trained:
    """Writes weights and curves and, where the run was stopped, the checkpoint that a later call goes on from."""
    if stop is not None:
        run.save(needed=True)
    weights = run.save_for_use(needed=True)
    if run.world.is_first:
        run.draw_curves()
    return Trained(
        weights=weights,
        step=run.step,
        expressions=run.expressions,
        stopped_by=None if stop is None else stop.reason,
        is_planned=stop is None or stop.is_planned,
        is_first_process=run.world.is_first,
        best=run.best,
        best_text=run.best_text,
        seconds=run.seconds,
        skipped=run.skipped,
    )
