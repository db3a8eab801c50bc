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

    def __init__(self, title: str, total: int | None, start: int = 0, *, quiet: bool = False) -> None:
        """`total` None: not known. `quiet`: nothing is shown."""
        self.title, self.total, self.start, self.quiet = title, total, start, quiet
        console = Console(stderr=True)
        self._live = sys.stderr.isatty() and not quiet and not console.is_dumb_terminal
        self._began = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not self._live,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),  # else what is piped would go to stderr
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
        is_last = self.total is not None and done >= self.total
        if not self._live and not self.quiet and (is_last or now - self._last_line >= PLAIN_SECONDS):
            self._last_line = now
            print(f"{self.title} {self._plain(done)} {note}".rstrip(), file=sys.stderr, flush=True)

    def rate(self, done: int) -> float:
        """Of the total, a second, since this line began."""
        return (done - self.start) / max(time.monotonic() - self._began, 1e-9)

    def _plain(self, done: int) -> str:
        if self.total is None:
            return str(done)
        rate = self.rate(done)
        left = f", {(self.total - done) / rate:.0f} s left" if rate else ""
        return f"{done}/{self.total}{left}"


class StagedProgress:
    """Progress of work in stages: `progress("making masks", done, total)`; a new name begins a new line."""

    def __init__(self) -> None:
        self._line: ProgressLine | None = None
        self._stage, self._done = "", 0

    def __enter__(self) -> StagedProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end()

    def __call__(self, stage: str, done: int, total: int | None, unit: str = "") -> None:
        """`done` smaller than before begins a new line as well; with a `unit` the rate is shown."""
        if self._line is None or stage != self._stage or done < self._done:
            self._end()
            self._line = ProgressLine(stage, total, start=done).__enter__()
            self._stage = stage
        self._done = done
        self._line.update(done, f"{self._line.rate(done):.1f} {unit}/s" if unit else "")

    def bytes(self, stage: str, done: int, total: int | None) -> None:
        """The same for bytes, shown in MiB, with their rate."""
        self(f"{stage} (MiB)", done >> 20, None if total is None else -(-total >> 20), "MiB")

    def _end(self) -> None:
        if self._line is not None:
            self._line.__exit__(None, None, None)
            self._line = None
