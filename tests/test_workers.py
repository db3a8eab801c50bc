"""The processes that prepare data: what is said where one of them is gone or cannot be started."""

from __future__ import annotations

import os
from typing import Any

import pytest

from vlformer_cli.data import workers
from vlformer_cli.data.workers import run_chunks
from vlformer_cli.types import VLFormerError


def test_a_worker_that_is_killed_is_said_with_a_remedy() -> None:
    with pytest.raises(VLFormerError, match=r"ended before its work was done: .*--shm-size \(/dev/shm\)"):
        list(run_chunks(os._exit, [1, 1], workers=2))


def test_locks_that_find_no_shared_memory_are_said_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", pool)
    with pytest.raises(VLFormerError, match=r"could be started \(.*No space left on device\): .*--shm-size"):
        list(run_chunks(str, [1, 2], workers=2))
