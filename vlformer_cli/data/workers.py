"""Runs chunks of work in other processes, in order, without leaving a process behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

import cv2

from vlformer_cli.types import VLFormerError

SHORT_OF_MEMORY = (
    "perhaps memory ran out, then use fewer cores (`taskset -c 0` before the command); in a container, raise "
    "--shm-size (/dev/shm)"
)

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_chunks(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None = None
) -> Generator[Result, None, None]:
    """The results in the order of the tasks; `work` must be importable. One worker means this very process.

    Close it (`contextlib.closing`) where the caller may stop early: that is what ends the workers. Raises VLFormerError
    where a worker is gone or cannot be started.
    """
    count = min(workers or _usable_cores(), len(tasks))
    if count <= 1:
        yield from map(work, tasks)
        return
    # spawn: a fork of a process with threads (torch, OpenCV) may hang
    context = multiprocessing.get_context("spawn")
    line, held = context.Pipe(duplex=False)
    try:
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(line,))
    except OSError as error:  # it keeps its locks in shared memory
        raise VLFormerError(f"no worker processes could be started ({error}): {SHORT_OF_MEMORY}") from error
    try:
        yield from pool.map(work, tasks)
    except BrokenProcessPool as error:
        raise VLFormerError(f"a worker process ended before its work was done: {SHORT_OF_MEMORY}") from error
    finally:
        held.close()  # the workers end now, and not after what they have begun
        pool.shutdown(wait=True, cancel_futures=True)
        line.close()


def _usable_cores() -> int:
    """Which taskset or a container can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(line: Connection) -> None:
    """In a worker: one thread, no reaction to Ctrl-C, and an end when the other end of the line is let go."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, args=(line,), daemon=True).start()


def _follow_parent(line: Connection) -> None:
    line.poll(None)  # nothing is ever sent: the parent closed it, or is gone
    os._exit(1)
