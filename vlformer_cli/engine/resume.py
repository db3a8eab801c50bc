"""Which checkpoint a run goes on from, and whether its config is still the one that it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlformer_cli.config import Config
from vlformer_cli.engine.checkpoint import remove_partials
from vlformer_cli.engine.distributed import World
from vlformer_cli.engine.precision import kept_precision
from vlformer_cli.engine.run_folder import WEIGHTS, Checkpoints
from vlformer_cli.report.say import say
from vlformer_cli.tree import from_tree, to_tree
from vlformer_cli.types import SettledError, VLFormerError

MAY_CHANGE = (
    "data.cache",
    "data.workers",
    "train.accumulate",
    "train.cuda_graphs",
    "train.device",
    "train.eval_every",
    "train.keep",
    "train.log_every",
    "train.save_every",
    "train.tensorboard",
    "train.text_cache",
    "train.threads",
    "train.wandb",
)
"""Fields that say how the run is done and not what it computes (but for rounding)."""


def state_to_start_from(
    checkpoints: Checkpoints, config: Config, output: Path, world: World, *, resume: bool
) -> dict[str, Any] | None:
    """The newest whole state of the run in `output`; None where a new run begins.

    Raises SettledError if there is a run and `resume` is False, if there are weights of one but no checkpoint, if all
    checkpoints are damaged, or if the config changed since; VLFormerError if the processes do not see the same one, as
    disks may be late.
    """
    step, state = newest_state(checkpoints) if resume else (None, None)
    # all look before any writes, so that a second process does not take the first one's folder for an old run
    is_there, weights = bool(checkpoints.steps()) or (output / "metrics.jsonl").exists(), output / WEIGHTS
    views = world.gather((step, is_there and not resume, step is None and weights.exists(), world.restarts))
    steps, exists, has_weights_alone, restarts = zip(*views, strict=True)
    if any(exists):
        raise SettledError(f"{output} holds a run already: add --resume, or give another --output")
    if any(has_weights_alone) and not any(restarts):  # what a restart finds, this job has made
        raise SettledError(
            f"{output} holds the weights of a run but no checkpoint to go on from: give another --output; "
            f"--init {weights} begins with these weights"
        )
    if len(set(steps)) > 1:
        raise VLFormerError(f"the processes see checkpoints of steps {list(steps)}: share the folder {output}")
    if state is not None:
        refuse_changes(state["config"], config, output)
    if world.is_first:
        _make_ready(checkpoints, output, step, state, world, resume=resume)
    return state


def _make_ready(
    checkpoints: Checkpoints,
    output: Path,
    step: int | None,
    state: dict[str, Any] | None,
    world: World,
    *,
    resume: bool,
) -> None:
    """Puts damaged checkpoints aside, removes what a killed process left half written, and says where it goes on."""
    for folder in (output, checkpoints.folder):
        remove_partials(folder)
    if step is None or state is None:
        if resume:
            say(f"resume: no checkpoint in {output}, so a new run begins")
        return
    for newer in checkpoints.steps():
        if newer > step:
            say(f"resume: {checkpoints.path(newer)} is damaged; it is kept as {checkpoints.put_aside(newer).name}")
    processes = len(state["rng"])
    change = "" if processes == world.size else f", begun with {processes} processes and now with {world.size}"
    say(f"resume: going on after step {step} from {checkpoints.path(step)}{change}")


def newest_state(checkpoints: Checkpoints) -> tuple[int | None, dict[str, Any] | None]:
    """The newest whole state and its step; None where there is none. Raises SettledError where all are damaged."""
    damaged: list[str] = []
    for step, state in checkpoints.load_newest():
        if state is not None:
            return step, state
        damaged.append(str(checkpoints.path(step)))
    if damaged:
        raise SettledError(f"no checkpoint can be read, all are damaged: {', '.join(damaged)}; start a new run")
    return None, None


def refuse_changes(old: dict[str, Any], config: Config, folder: Path) -> None:
    """Raises SettledError that names each field on which the run's numbers depend and that changed."""
    before = to_tree(from_tree(Config, old, where=f"{folder}: its checkpoint"))  # with newer fields' defaults
    now = kept_precision(to_tree(config), before)
    changed = [d for d in differences(before, now) if not d.startswith(tuple(f"{f} " for f in MAY_CHANGE))]
    if changed:
        raise SettledError(
            f"the config changed since the run in {folder} began: {'; '.join(changed)}. "
            "Give the same --config and --set as then, or change --output"
        )


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """`field was X, is Y` for every leaf that differs.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c was 2, is 3']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))]
    return [] if old == new else [f"{where} was {old!r}, is {new!r}"]
