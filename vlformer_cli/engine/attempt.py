"""The folder that torchrun's processes of one machine share, where they and their successors leave notes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def attempt_folder(environment: Mapping[str, str]) -> Path | None:
    """That of all processes of this machine since the job's last restart; None where torchrun has made none.

    torchrun tells each process where to write its traceback: FOLDER/attempt_0/0/error.json. The folder above is the
    job's own, which outlives a restart and not the job.
    """
    folder = Path(environment.get("TORCHELASTIC_ERROR_FILE", "")).parent.parent
    return folder if folder.name.startswith("attempt_") and folder.is_dir() else None
