"""A training run on the screen: a live table on a terminal, plain lines otherwise. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from vlformer_cli.report.progress import PLAIN_SECONDS

RECENT_SECONDS = 60.0  # the rate and the time left are those of about the last minute


@dataclass(frozen=True, slots=True)
class Now:
    """How the run stands after a step."""

    step: int
    losses: Mapping[str, float]
    lr: float
    expressions: int
    """Seen in the whole run."""
    memory: str
    notes: str = ""
    """Skipped steps, cut expressions, the last evaluation."""


class TrainDisplay:
    """`with TrainDisplay("vlformer-tiny", 7000) as display: display.update(Now(...))`."""

    def __init__(self, title: str, steps: int, *, quiet: bool = False) -> None:
        """`quiet`: for processes other than the first, which show nothing."""
        self.title, self.steps, self.quiet = title, steps, quiet
        self._live = self._new_live()
        self._last_line = time.monotonic()
        self._past: list[tuple[float, int, int]] = []

    def _new_live(self) -> Live | None:
        console = Console(stderr=True)
        is_live = not self.quiet and sys.stderr.isatty() and not console.is_dumb_terminal
        return Live(console=console, refresh_per_second=4, transient=False) if is_live else None

    def __enter__(self) -> TrainDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the terminal is another's: an evaluation's bar."""
        if self._live is None:
            yield
            return
        shown, self._live.transient = self._live.get_renderable(), True  # it goes, and comes back below what follows
        self._live.stop()
        try:
            yield
        finally:
            self._live = self._new_live()  # the old one would begin above what was shown
            if self._live is not None:
                self._live.start()
                self._live.update(shown, refresh=True)

    def update(self, now: Now) -> None:
        """Shows it: at once on a terminal, otherwise every 15 seconds and at the end."""
        time_now = time.monotonic()
        self._past.append((time_now, now.step, now.expressions))
        while len(self._past) > 2 and time_now - self._past[1][0] > RECENT_SECONDS:
            self._past.pop(0)
        if self._live is not None:
            self._live.update(self._table(now))
        elif not self.quiet and (now.step >= self.steps or time_now - self._last_line >= PLAIN_SECONDS):
            self._last_line = time_now
            print(self._line(now), file=sys.stderr, flush=True)

    def rates(self) -> tuple[float, float]:
        """Expressions a second, and seconds a step, of late; 0 before the second step."""
        (began, first_step, first), (ended, last_step, last) = self._past[0], self._past[-1]
        if last_step == first_step or ended <= began:
            return 0.0, 0.0
        return (last - first) / (ended - began), (ended - began) / (last_step - first_step)

    def _facts(self, now: Now) -> dict[str, str]:
        rate, seconds_a_step = self.rates()
        left = duration(seconds_a_step * (self.steps - now.step)) if seconds_a_step else "?"
        losses = {name: f"{value:.3f}" for name, value in now.losses.items()}
        facts = {**losses, "lr": f"{now.lr:.2g}", "expressions/s": f"{rate:.1f}", "left": left, "memory": now.memory}
        return {**facts, **({"notes": now.notes} if now.notes else {})}

    def _line(self, now: Now) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts(now).items())
        return f"train {now.step}/{self.steps} {facts}"

    def _table(self, now: Now) -> RenderableType:
        facts = self._facts(now)
        notes = facts.pop("notes", "")
        table = Table.grid(padding=(0, 2))
        table.add_row(*(f"[dim]{name}[/dim]" for name in facts))
        table.add_row(*facts.values())
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            f"[bold]{self.title}[/bold]", ProgressBar(self.steps, now.step, width=40), f"{now.step}/{self.steps}"
        )
        return Group(bar, table, *([notes] if notes else []))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the two largest that matter.

    >>> duration(59), duration(61), duration(7265)
    ('59 s', '1 min 1 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
