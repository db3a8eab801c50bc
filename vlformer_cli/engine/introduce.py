"""What a training run says about itself when it begins."""

from __future__ import annotations

from vlformer_cli.data.build import first_stage_of
from vlformer_cli.engine.precision import describe_precision
from vlformer_cli.engine.run import Run
from vlformer_cli.engine.weights_table import COLUMNS
from vlformer_cli.report.say import say, show_table


def introduce(run: Run) -> None:
    """Says what the run is about to do, in which precision, and where its weights came from."""
    say(_plan(run))
    for line in describe_precision(run.asked_precision, run.config.train.precision, run.device):
        say(line)
    if run.device.type == "cuda" and run.config.train.cuda_graphs:
        reason = run.stepper.why_not_graphed
        say("steps are replayed as CUDA graphs" if reason is None else f"train.cuda_graphs has no effect: {reason}")
    if run.initialisation is not None:
        say(f"weights: {run.initialisation.summary}")
        if run.config.init is not None:
            show_table(COLUMNS, run.initialisation.table())


def _plan(run: Run) -> str:
    """Steps, device, and how the pictures of a step are shared."""
    settings, data = run.config.train, run.config.data
    assert data is not None
    share, rest = divmod(data.images_per_step, run.world.size * settings.accumulate)
    each = f"{share} or {share + 1}" if rest else str(share)
    stage = first_stage_of(run.config)
    pictures, _ = stage.pictures(0, data.images_per_step)
    words_first = f"; words first: {stage.steps} of them, of {pictures} pictures" if stage.steps else ""
    return (
        f"{run.config.model.name}: {settings.steps} steps on {run.device.type}, each of {data.images_per_step} "
        f"pictures (processes {run.world.size} x forwards {settings.accumulate} x pictures {each}) with up to "
        f"{data.expressions_per_image} expressions{words_first}"
    )
