"""A process that makes batches for a training process, and how the two talk.

They share one socket and no shared memory: containers often have little (Docker: 64 MiB), and a process that fills it
is killed or waits for ever. The training process sends the data set, then the numbers of steps. The worker answers each
number with that step's batches, or with the exception that making them raised.
"""

from __future__ import annotations

import pickle
import signal
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlformer_cli.engine.stop import SIGNALS
from vlformer_cli.types import Batch


class WorkerTraceback(Exception):
    """Where in a worker an exception was raised: the cause that it gets in the training process, for `--debug`."""

    def __str__(self) -> str:
        return f"in a process that loads data:\n{self.args[0]}"


def work(line: Connection) -> None:
    """What the process does until the training process hangs up or is gone."""
    _begin()
    with suppress(EOFError, ConnectionError):
        data: Dataset[tuple[Batch, ...]] = pickle.loads(line.recv_bytes())
        while True:
            line.send_bytes(_answer(data, line.recv()))


def unpack(answer: bytes) -> tuple[Batch, ...]:
    """The batches of an answer; raises the exception that it holds instead."""
    error, text, packed = pickle.loads(answer)
    if error is not None:
        raise error from WorkerTraceback(text)
    return tuple(Batch(**{name: _tensor(value) for name, value in batch.items()}) for batch in packed)


def pack(batches: Sequence[Batch]) -> bytes:
    """The inverse of `unpack`. Tensors travel as arrays: pickling them directly takes two more copies."""
    packed = [{field.name: _array(getattr(batch, field.name)) for field in fields(batch)} for batch in batches]
    return pickle.dumps((None, "", packed), protocol=5)


def _answer(data: Dataset[tuple[Batch, ...]], step: int) -> bytes:
    try:
        return pack(data[step])
    except Exception as error:
        return pickle.dumps((_portable(error), traceback.format_exc(), ()))


def _portable(error: Exception) -> Exception:
    """The exception, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if type(value).__module__ == "numpy" else value


def _begin() -> None:
    """One thread. Ctrl-C and a scheduler's SIGTERM, which reach all processes, do not end this one.

    The training process still needs batches to stop in order.
    """
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
