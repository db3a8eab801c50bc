"""What a run says of itself in numbers: `metrics.jsonl`, TensorBoard's files, and Weights & Biases if wanted."""

from __future__ import annotations

import json
import warnings
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
        self._warned = False

    def write(self, row: dict[str, Any]) -> None:
        """A row with at least `step`; numbers in it, nested or not, become curves."""
        try:
            _append(self.path, json.dumps(row) + "\n")
            for board in self.boards:
                board.write(row["step"], _numbers(row))
        except OSError as error:
            if not self._warned:
                say(f"log: a row of {self.path} could not be written ({error}); the run goes on")
            self._warned = True

    def close(self) -> None:
        """Ends what writes in the background."""
        for board in self.boards:
            board.close()


def _append(path: Path, line: str) -> None:
    """The whole line or nothing of it."""
    with path.open("ab") as file:
        before = file.tell()
        try:
            file.write(line.encode())
            file.flush()
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
    def __init__(self, folder: Path, resumed_at: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if name not in ("step", "seconds"):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, folder: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise VLFormerError(f"train.wandb needs a package ({error}): pip install 'vlformer[wandb]'") from error
        identity = folder / "wandb-id.txt"
        if not identity.exists():
            identity.write_text(wandb.util.generate_id())
        self._run = wandb.init(project=project, id=identity.read_text().strip(), dir=str(folder), resume="allow")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()
