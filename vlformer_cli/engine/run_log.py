"""What a run says of itself in numbers: `metrics.jsonl`, TensorBoard's files, and Weights & Biases if wanted."""

from __future__ import annotations

import errno
import json
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from vlformer_cli.config import TrainConfig
from vlformer_cli.engine.run_folder import read_rows, write_rows
from vlformer_cli.report.say import say
from vlformer_cli.types import VLFormerError


class RunLog:
    """Rows go to every place at once. A full disk costs rows, not the run."""

    def __init__(self, folder: Path, config: TrainConfig, *, resumed_at: int) -> None:
        """Rows of steps after `resumed_at`, which are about to be taken again, are dropped. Raises VLFormerError."""
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            write_rows(self.path, read_rows(self.path, up_to=resumed_at))
        self.boards: list[Any] = []
        if config.tensorboard:
            self.boards.append(_TensorBoard(folder, resumed_at))
        if config.wandb:
            self.boards.append(_WandB(folder, config.wandb))
        self._lost = set[str]()

    def write(self, row: dict[str, Any]) -> None:
        """A row with at least `step`; numbers in it, nested or not, become curves."""
        self._try(self.path, lambda: _append(self.path, json.dumps(row) + "\n"))
        numbers = _numbers(row)
        for board in self.boards:
            self._try(board.folder, partial(board.write, row["step"], numbers))

    def close(self) -> None:
        """Ends what writes in the background."""
        for board in self.boards:
            self._try(board.folder, board.close)

    def _try(self, place: Path, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            if str(place) not in self._lost:
                say(f"log: a row of {place} could not be written ({error}); the run goes on")
            self._lost.add(str(place))


def _append(path: Path, line: str) -> None:
    """The whole line or nothing of it. Without a buffer, whose rest a full disk would leave for the next line."""
    with path.open("ab", buffering=0) as file:
        before, content = file.tell(), line.encode()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(before)
            raise


def _numbers(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers by their path.

    >>> _numbers({"loss": 1.5, "val": {"chosen_query": {"miou": 0.5}, "data": "scenes"}})
    {'loss': 1.5, 'val/chosen_query/miou': 0.5}
    """
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = value
    return found


class _TensorBoard:
    """Events in files; a writer that could not write is dead, and the next row gets another one, with its own file."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        self.folder = folder / "tensorboard"
        self._purge: int | None = resumed_at + 1
        self._writer: Any = None
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error

    def write(self, step: int, numbers: dict[str, float]) -> None:
        try:
            if self._writer is None:
                self._writer = self._open()
            for name, value in numbers.items():
                if name not in ("step", "seconds"):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError:
            with suppress(OSError):
                self._end()
            raise

    def close(self) -> None:
        try:
            self._end()
        finally:
            threading.excepthook = self._hook

    def _open(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
            from torch.utils.tensorboard import SummaryWriter
        writer = SummaryWriter(str(self.folder), purge_step=self._purge)
        self._purge = None
        return writer

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """Its thread's OSError is raised here too, by the next `flush`: no traceback for that."""
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            self._hook(args)


class _WandB:
    def __init__(self, folder: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise VLFormerError(f"train.wandb needs a package ({error}): pip install 'vlformer[wandb]'") from error
        self.folder = folder / "wandb"
        identity = folder / "wandb-id.txt"
        if not identity.exists():
            identity.write_text(wandb.util.generate_id())
        self._run = wandb.init(project=project, id=identity.read_text().strip(), dir=str(folder), resume="allow")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()
