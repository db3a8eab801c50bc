"""Every generator of random numbers that a run may draw from, as plain values that a checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Python's, numpy's and torch's global generators, those of every device included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - some library may draw from the global one
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The states of all of them in this process."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, numbers, spare = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, list(numbers), spare],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, numbers, spare = state["python"]
    random.setstate((version, tuple(numbers), spare))
