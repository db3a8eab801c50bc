"""Rows of an expressions file that cannot be used: all are found first, then they are refused or left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlformer_cli.types import VLFormerError

TOLD = 20  # messages in one error


@dataclass(slots=True)
class BadRows:
    """What is wrong with which rows."""

    count: int = 0
    _faults: list[tuple[int, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[str]:
        """In the order of the rows."""
        return [message for _, message in sorted(self._faults)]

    def add(self, number: int, error: VLFormerError, rows: int = 1) -> None:
        """`error` names row `number`, the first of `rows` rows with the same fault."""
        self.count += rows
        self._faults.append((number, f"{error} (and {rows - 1} more rows like it)" if rows > 1 else str(error)))

    def refuse(self, path: Path) -> None:
        """Raises VLFormerError with the first `TOLD` messages if there are bad rows."""
        messages = self.messages
        if len(messages) == 1:
            raise VLFormerError(f"{messages[0]}; or leave such rows out: --skip-bad-rows")
        if messages:
            lines = [f"{path} has {self.count} bad rows: correct them, or leave them out with --skip-bad-rows"]
            lines += [f"  {message}" for message in messages[:TOLD]]
            more = len(messages) - TOLD
            raise VLFormerError("\n".join(lines + [f"  and {more} more"] * (more > 0)))
