"""`state.json` in a run's folder: what became of the job that trained there last. Scripts read it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

from vlformer_cli.engine.manifest import write_json
from vlformer_cli.engine.run import Run
from vlformer_cli.engine.stop import StopRequest
from vlformer_cli.report.say import say
from vlformer_cli.types import one_line

STATE = "state.json"


@contextmanager
def state_recorded(run: Run, stop: StopRequest) -> Iterator[None]:
    """The state is `running` inside, and afterwards `finished`, `stopped` (`--resume` goes on) or `failed`.

    A job that is killed leaves `running`.
    """
    _write(run, "running", None)
    try:
        yield
    except BaseException as error:
        _write(run, "failed", one_line(error) or type(error).__name__)
        raise
    if run.is_finished:
        _write(run, "finished", None)
    else:
        _write(run, "stopped", stop.reason)


def _write(run: Run, state: str, reason: str | None) -> None:
    """`step`: the steps that were taken so far; `reason`: why the job stopped or failed."""
    if not run.world.is_first:
        return
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    try:
        write_json(run.output / STATE, {"state": state, "step": run.step, "reason": reason, "time": now})
    except OSError as error:
        say(f"state: {error}")
