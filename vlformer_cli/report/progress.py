"""Progress of long work, on stderr: a live bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0  # between plain lines


class ProgressLine:
    """`with ProgressLine("evaluating", total) as line: line.update(done, "mIoU 71.2")`."""

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self.title, self.total, self.start = title, total, start
        self._live = sys.stderr.isatty()
        self._began = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not self._live,
        )

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        self._task = self._bar.add_task(self.title, total=self.total, completed=self.start, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total, and a few words on how it goes."""
        self._bar.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if not self._live and (done >= self.total or now - self._last_line >= PLAIN_SECONDS):
            self._last_line = now
            rate = (done - self.start) / max(now - self._began, 1e-9)
            left = (self.total - done) / rate if rate else float("inf")
            print(f"{self.title} {done}/{self.total}, {left:.0f} s left {note}".rstrip(), file=sys.stderr, flush=True)
