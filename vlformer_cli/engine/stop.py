"""When a run has to stop early: a signal came, its launcher is gone, or its time is nearly over.

Either way it ends with a checkpoint.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from vlformer_cli.types import PeerLostError

TIME_LIMIT = "its time limit (--max-minutes)"
ORPHANED = "the end of the process that started it"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESERVE = 1.5  # so many times what a step and a checkpoint took at the longest is kept free before the limit
ENDING = 4.0  # and so many seconds for weights, curves and the end of the processes
STARTED = "VLFORMER_STARTED"  # in the environment of a job's processes: when the command began, in seconds since 1970


def began(environment: Mapping[str, str]) -> float:
    """When the command began, in seconds since 1970: the job's, restarts included, or else this process."""
    try:
        return float(environment[STARTED])
    except (KeyError, ValueError):
        return time.time() - _age()


def minutes_left(max_minutes: float | None, environment: Mapping[str, str]) -> float | None:
    """Of a limit that counts from when the command began; None: no limit."""
    return None if max_minutes is None else max(0.0, max_minutes - (time.time() - began(environment)) / 60)


def _age() -> float:
    """How long this process has been running: importing torch alone takes seconds. 0 where there is no /proc."""
    try:
        ticks = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]  # starttime; see proc(5)
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - float(ticks) / os.sysconf("SC_CLK_TCK"))
    except (OSError, IndexError, ValueError):
        return 0.0


class StopRequest:
    """Inside `with`, the first SIGTERM or SIGINT asks to stop; a second SIGINT of a lone process interrupts at once."""

    def __init__(self, max_minutes: float | None, *, alone: bool, follows_parent: bool = False) -> None:
        """`max_minutes`: from now; None: no limit. `alone`: the only process; to several, signals come twice.

        `follows_parent`: the end of the process that started this one is a reason to stop too.
        """
        self.reason: str | None = None
        self.alone = alone
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._parent = os.getppid() if follows_parent else None
        self._longest = {"step": 0.0, "checkpoint": 0.0, "evaluation": 0.0}
        self._guessed = dict(self._longest)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, PeerLostError) and self.reason not in (None, TIME_LIMIT, ORPHANED):
            # torchrun ends this process because another one failed: it is that one's turn to speak
            signal.raise_signal(signal.SIGTERM)

    def took(self, what: str, seconds: float) -> None:
        """Notes the duration of a `step`, a `checkpoint` or an `evaluation`, so that the time limit can be kept."""
        self._longest[what] = max(self._longest[what], seconds)

    def guess(self, what: str, seconds: float) -> None:
        """What a duration may be that `took` has not been told yet."""
        self._guessed[what] = seconds

    def is_wanted(self, *, evaluates: bool) -> bool:
        """Whether the run should stop before its next step. `evaluates`: an evaluation comes after that."""
        if self.reason is None and self._parent not in (None, os.getppid()):
            self.reason = ORPHANED
        if self.reason is None and self._deadline is not None:
            needed = sum(
                t or self._guessed[what] for what, t in self._longest.items() if evaluates or what != "evaluation"
            )
            if self._deadline - time.monotonic() < RESERVE * needed + ENDING:
                self.reason = TIME_LIMIT
        return self.reason is not None

    @property
    def is_planned(self) -> bool:
        """Whether it was the time limit, and not a signal or another process."""
        return self.reason == TIME_LIMIT

    def agree(self, reasons: Sequence[str | None]) -> None:
        """Takes over the reason of the process that has one; of several, a signal."""
        given = [reason for reason in reasons if reason]
        self.reason = next((reason for reason in given if reason != TIME_LIMIT), given[0] if given else None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT and self.alone:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
