"""The folder that a command writes to, checked before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

from vlformer_cli.types import UsageError


def check_output_folder(folder: Path) -> None:
    """Raises UsageError where `folder` is a file, or cannot be made or written to."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UsageError(f"--output {folder}: {nearest} is a file and no folder: choose another one")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"--output {folder}: {nearest} is not writable: choose another one")
