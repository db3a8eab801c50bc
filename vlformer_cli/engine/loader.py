"""The processes beside a training process that make its batches (`load_worker.py`), and the wait for them.

The wait always ends: with a batch, with an error where a worker failed or is gone, or because the run has to stop.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
from torch.utils.data import Dataset

from vlformer_cli.engine.load_worker import unpack, work
from vlformer_cli.engine.stop import SIGNALS
from vlformer_cli.report.say import say
from vlformer_cli.types import Batch, VLFormerError

AHEAD = 2  # batches that each worker makes before they are asked for
POLL = 0.2  # seconds between looks at whether the run has to stop
PATIENCE = 60.0  # seconds without a batch before the person is told, then twice as long each time
GRACE = 3.0  # seconds in which workers end by themselves, before they are killed
SHARED_MEMORY = Path("/dev/shm")

Batches = tuple[Batch, ...]


def load(
    data: Dataset[Batches],
    steps: range,
    *,
    workers: int,
    device: torch.device,
    has_to_stop: Callable[[], bool] = lambda: False,
) -> Generator[Batches, None, None]:
    """The items `steps` of `data`, in order, made by so many processes (0: by this one).

    Yields an empty tuple in place of an item, and then ends, where `has_to_stop` says so while it waits for that.
    Close it (`contextlib.closing`) in any case: that ends the processes. Raises VLFormerError where one of them is
    gone, and what making an item raised.
    """
    if not workers:
        for step in steps:
            yield _pinned(data[step], device)
        return
    crew = _Crew(data, steps, workers, device)
    try:
        for _ in steps:
            batches = _wait_for(crew, has_to_stop)
            yield batches
            if not batches:
                return
    finally:
        crew.close()


def _wait_for(crew: _Crew, has_to_stop: Callable[[], bool]) -> Batches:
    """The next item; an empty tuple where the run has to stop before that is there."""
    began, patience = time.monotonic(), PATIENCE
    while (batches := crew.next(POLL)) is None:
        if has_to_stop():
            return ()
        if time.monotonic() - began > patience:
            say(f"data: no batch for {patience:.0f} s; still waiting for the loader processes (data.workers)")
            patience *= 2
    return batches


class _Crew:
    """Worker processes that take turns, and a thread that receives what they made and pins it for a GPU."""

    def __init__(self, data: Dataset[Batches], steps: range, count: int, device: torch.device) -> None:
        self.steps, self.device = steps, device
        self._taken = 0
        self._received = queue.SimpleQueue[Batches | BaseException]()
        self._lines: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self._receiver = threading.Thread(target=self._receive, args=(pickle.dumps(data),), daemon=True)
        try:
            for _ in range(count):
                self._start_worker()
        except OSError as error:
            self.close()
            raise VLFormerError(f"a process that loads data could not be started ({error}): {_remedy()}") from error
        self._receiver.start()

    def next(self, seconds: float) -> Batches | None:
        """The next item; None where it is not there after so many seconds. Raises what went wrong."""
        try:
            received = self._received.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(received, BaseException):
            raise received
        self._order(self._taken + AHEAD * len(self._lines))
        self._taken += 1
        return received

    def close(self) -> None:
        """Ends the processes and the thread."""
        for line in self._lines:
            _hang_up(line)
        end = time.monotonic() + GRACE
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
        if self._receiver.ident is not None:
            self._receiver.join()
        for line in self._lines:
            line.close()

    def _start_worker(self) -> None:
        # a fork would copy OpenCV's and OpenMP's thread pools without their threads, and hang on first use
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # as it starts, it unblocks the signals that are blocked below
        ours, theirs = context.Pipe()
        self._lines.append(ours)
        process = context.Process(target=work, args=(theirs,), name="vlformer-loader", daemon=True)
        with theirs, _signals_blocked():
            process.start()
        self._processes.append(process)

    def _order(self, number: int) -> None:
        """Asks the worker whose turn it is for the item at this place in `steps`."""
        if number < len(self.steps):
            with suppress(OSError):  # it is gone, which `_receive` says
                self._lines[number % len(self._lines)].send(self.steps[number])

    def _receive(self, data: bytes) -> None:
        """In the thread: items in order, until the last one or an exception."""
        try:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            for line in self._lines:
                with suppress(OSError):
                    line.send_bytes(data)
            for number in range(AHEAD * len(self._lines)):
                self._order(number)
            for number in range(len(self.steps)):
                answer = self._answer_of(number % len(self._lines))
                self._received.put(_pinned(unpack(answer), self.device))
        except BaseException as error:
            self._received.put(error)

    def _answer_of(self, worker: int) -> bytes:
        line, process = self._lines[worker], self._processes[worker]
        wait([line, process.sentinel])
        try:
            if line.poll():
                return line.recv_bytes()
        except (EOFError, OSError):
            pass
        process.join(GRACE)
        raise VLFormerError(
            f"a process that loads data ended ({_end_of(process)}): {_remedy()}; the run can go on with --resume"
        )


def _pinned(batches: Batches, device: torch.device) -> Batches:
    """In page-locked memory where the device is a GPU, which copies from there without a wait."""
    return tuple(batch.pin_memory() for batch in batches) if device.type == "cuda" else batches


def _end_of(process: SpawnProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"pid {process.pid}, killed by {signal.Signals(-code).name}"
    return f"pid {process.pid}, exit code {code}"


def _remedy() -> str:
    """What to do where memory ran out, with the free part of what a container limits most often."""
    try:
        free = f"{SHARED_MEMORY} has {shutil.disk_usage(SHARED_MEMORY).free / 2**20:.1f} MiB free"
    except OSError:
        free = f"there is no {SHARED_MEMORY}"
    return f"perhaps memory ran out, then lower data.workers; in a container, raise --shm-size too ({free})"


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Signals that ask to stop wait, and a process started meanwhile never gets them.

    A worker needs seconds for its imports before it can ignore them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hang_up(line: Connection) -> None:
    """Both ends see the end of the line at once, also a thread that waits for it now."""
    with socket.socket(fileno=os.dup(line.fileno())) as end, suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
