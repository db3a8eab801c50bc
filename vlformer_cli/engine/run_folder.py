"""A run's folder: checkpoints to resume from, the log of numbers, config and manifest.

`checkpoints/step-00000500.pt` is what the next step depends on, and `step-00000500.pt.sha256` (as `sha256sum -c` reads
it) tells whether it is whole. Nothing that is half written ever has its final name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from vlformer_cli.data.store import file_sha256
from vlformer_cli.engine.checkpoint import write_atomically
from vlformer_cli.engine.distributed import World
from vlformer_cli.types import Batch, VLFormerError

LOCK_SECONDS = 15.0  # what processes whose launcher was killed may need to end in order
WEIGHTS = "model.safetensors"
"""In the run's folder, the newest weights."""
_NAME = re.compile(r"step-(\d{8,})\.pt")


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The resumable states of a run, the newest `keep` of them."""

    folder: Path
    keep: int

    def steps(self) -> list[int]:
        """Those there are, the newest first."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*.pt"))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def path(self, step: int) -> Path:
        """Where the state after so many steps lies."""
        return self.folder / f"step-{step:08d}.pt"

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes the state after `step`, then drops what is older than the newest `keep`. Raises OSError.

        On a full disk all but the newest make room.
        """
        try:
            self._save(step, state)
        except OSError:
            if not self._drop_all_but(1):
                raise
            self._save(step, state)
        self._drop_all_but(self.keep)

    def _save(self, step: int, state: dict[str, Any]) -> None:
        # the digest is made of the bytes on the disk, and is there before the checkpoint gets its name
        path, digest = self.path(step), self._digest(step)
        write_atomically(path, lambda partial: self._write(partial, digest, state))

    def _drop_all_but(self, count: int) -> list[int]:
        """The steps whose checkpoints were dropped, the oldest."""
        old = self.steps()[max(1, count) :]
        for step in old:
            self.path(step).unlink(missing_ok=True)
            self._digest(step).unlink(missing_ok=True)
        return old

    def put_aside(self, step: int) -> Path:
        """Gives a damaged checkpoint a name that is not looked at again, and returns that."""
        self._digest(step).unlink(missing_ok=True)
        return self.path(step).replace(self.path(step).with_suffix(".pt.damaged"))

    def load_newest(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """From the newest on: the step and its state, or None where the file is damaged.

        Raises VLFormerError where it is whole and can still not be loaded, OSError where the disk does not give it.
        """
        for step in self.steps():
            yield step, self._load(step)

    def _write(self, partial: Path, digest: Path, state: dict[str, Any]) -> None:
        torch.save(state, partial)
        line = f"{file_sha256(partial)}  {digest.stem}\n"
        write_atomically(digest, lambda p: p.write_text(line, encoding="ascii"))

    def _load(self, step: int) -> dict[str, Any] | None:
        path, is_whole = self.path(step), self._is_whole(step)
        if is_whole is False:
            return None
        try:
            # only tensors and plain containers are read, never code
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes the unpickler raise
            if is_whole:
                raise VLFormerError(f"{path} is whole, its SHA-256 is right, and cannot be loaded: {error}") from error
            return None
        return state

    def _is_whole(self, step: int) -> bool | None:
        """Whether the file has its digest; None where that is not known. Raises OSError where it cannot be read."""
        digest = self._digest(step)
        if not digest.exists():
            return None
        written = digest.read_text(encoding="ascii", errors="replace").split()
        return bool(written) and written[0] == file_sha256(self.path(step))

    def _digest(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt.sha256"


@contextmanager
def alone_in(folder: Path, world: World) -> Iterator[None]:
    """Inside, no other job can train in the folder; raises VLFormerError where one does. Killed ones leave no lock."""
    lock = FileLock(folder / ".lock", timeout=LOCK_SECONDS) if world.is_first else None
    try:
        if lock is not None:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout as error:
        raise VLFormerError(
            f"another process is training in {folder}: wait for it, end it, or give another --output"
        ) from error
    except (OSError, NotImplementedError):
        lock = None  # some network file systems have no locks, and on a full disk training goes on
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def read_rows(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl` up to that step; a last line without its end is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    try:
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise VLFormerError(f"{path} is damaged ({error}): mend or remove that line") from error
    return [row for row in rows if up_to is None or row["step"] <= up_to]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The inverse of `read_rows`."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_batches(path: Path, step: int, batches: Sequence[Batch]) -> None:
    """What one process took of a step, for inspection with `torch.load(path)`: tensors and plain words."""
    tensors = ("images", "pixel_valid", "tokens", "image_index", "masks")
    forwards = [
        {
            **{name: getattr(batch, name).cpu() for name in tensors},
            "expressions": [sample.expression for sample in batch.samples],
            "pictures": [sample.ref.image for sample in batch.samples],
            "sent_ids": [sample.sent_id for sample in batch.samples],
        }
        for batch in batches
    ]
    write_atomically(path, lambda partial: torch.save({"step": step, "forwards": forwards}, partial))
