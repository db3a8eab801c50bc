"""The processes beside a training process that make its batches ready, and what is said when one of them fails."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker

import torch
from torch.utils.data import DataLoader, Dataset

from vlformer_cli.engine.stop import SIGNALS
from vlformer_cli.types import Batch, VLFormerError, one_line

_CAUGHT = "in DataLoader worker process"  # how torch marks an exception that it brings over from a worker
_ENDED = "DataLoader worker (pid"  # and how it begins to say that one is gone


def load(
    data: Dataset[tuple[Batch, ...]], steps: range, *, workers: int, device: torch.device
) -> Generator[tuple[Batch, ...], None, None]:
    """The items `steps` of `data`, in order, made by so many processes; 0: by this one.

    Close it (`contextlib.closing`), whatever happens: that is what ends the processes.
    """
    loader: DataLoader[tuple[Batch, ...]] = DataLoader(
        data,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        generator=torch.Generator(),  # its own, so that making the loader leaves the global one as it is
        worker_init_fn=_begin,
        pin_memory=device.type == "cuda",
        # a fork would copy OpenCV's and OpenMP's thread pools without their threads, and hang on first use
        multiprocessing_context="spawn" if workers else None,
    )
    if workers:
        resource_tracker.ensure_running()  # where it begins, it lets the signals through again that are held back below
    with _held_back():
        batches = iter(loader)
    try:
        yield from batches
    finally:
        # torch does it when nothing refers to `batches` any more, but a traceback does; and then, at the exit, Python
        # waits for ever for processes that do not heed SIGTERM
        if workers:
            with suppress(RuntimeError):  # that one of them went by itself meanwhile: it would hide why this one ends
                batches._shutdown_workers()  # type: ignore[attr-defined]


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals that ask to stop wait, and processes begun meanwhile never get them: not before they ignore them either.

    A worker needs seconds for its imports before `_begin`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(_: int) -> None:
    """In a worker: one thread; and Ctrl-C or a scheduler's SIGTERM, which reach all processes, do not end it.

    The training process still needs batches to stop in order; the worker goes when that does.
    """
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def worker_failures() -> Iterator[None]:
    """What failed in a worker is said in its own words; that a worker is gone, with what to do."""
    try:
        yield
    except VLFormerError as error:
        if _CAUGHT not in str(error):
            raise
        raise VLFormerError(str(error).rsplit(f"{VLFormerError.__name__}: ", 1)[-1].strip()) from error
    except RuntimeError as error:
        if _ENDED not in str(error):
            raise
        raise VLFormerError(
            f"a process that loads data ended ({one_line(error)[:200]}): perhaps memory ran out, then lower "
            "data.workers; the run can go on with --resume"
        ) from error
