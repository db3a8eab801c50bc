"""The processes of a training job: who this one is, how they meet, and what they tell each other.

torchrun starts them (`vlformer train --gpus` calls it, see `launch.py`), or SLURM's `srun` does, one task per device.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist

from vlformer_cli.engine.device import pick_device, usable_cores
from vlformer_cli.types import PeerLostError, one_line

T = TypeVar("T")

PATIENCE = timedelta(minutes=60)  # before a process gives up on one that does not answer: longer than any evaluation
FIRST_PORT, PORTS = 20_000, 20_000  # a SLURM job's own number chooses among these
CAUSE_SECONDS = 30.0  # for the process that failed first to be found, before the others report that it is gone
_LOST_PEER = ("closed by peer", "reset by peer", "broken pipe", "timed out", "socket", "nccl", "remote process exited")


@dataclass(frozen=True, slots=True)
class World:
    """The place of this process among those of the job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    """How often torchrun has started the job's processes again."""
    own_cores: int = 0
    """CPU cores that are this process's alone; 0: those of the machine are shared by its processes."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the person."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process: with several GPUs, the one of its local rank. Raises VLFormerError."""
        device = pick_device(name)
        if device.type == "cuda" and device.index is None:
            # under SLURM a task may see its own GPU alone, as number 0
            device = torch.device("cuda", self.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
        return device

    def threads(self, wanted: int) -> int:
        """CPU threads for this process; 0: as many as it has cores, or its share of the machine's."""
        return wanted or self.own_cores or max(1, usable_cores() // self.local_size)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with _peers():
            dist.all_reduce(total)
        return [float(value) for value in total]

    def max(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over all processes."""
        if self.size == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.int64)
        with _peers():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return [int(value) for value in largest]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with _peers():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]


ALONE = World()


def world_from(environment: Mapping[str, str]) -> World:
    """The world that torchrun's or SLURM's variables describe; one process where there are none.

    >>> world_from({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    World(rank=3, size=4, local_rank=1, local_size=2, restarts=0, own_cores=0)
    >>> world_from({})
    World(rank=0, size=1, local_rank=0, local_size=1, restarts=0, own_cores=0)
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank, local_size, restarts = (int(environment.get(n, d)) for n, d in zip(names[2:], "010", strict=True))
        return World(rank, size, local_rank, local_size, restarts)
    if _is_slurm_task(environment):
        here = environment["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0]
        return World(
            rank=int(environment["SLURM_PROCID"]),
            size=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            local_size=int(here),
            own_cores=int(environment.get("SLURM_CPUS_PER_TASK", "0")),
        )
    return World()


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
    """Only inside `srun` and only with several tasks: a batch script has some of these variables too."""
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_ID")
    return all(name in environment for name in needed) and int(environment["SLURM_STEP_NUM_TASKS"]) > 1


@contextmanager
def joined(world: World) -> Iterator[None]:
    """Inside, the processes can talk: CPU tensors by gloo, GPU tensors by nccl."""
    if world.size == 1:
        yield
        return
    for name, value in _meeting_place(world, os.environ).items():
        os.environ.setdefault(name, value)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    with _peers():
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        with _peers():
            yield
    finally:
        dist.destroy_process_group()


def _meeting_place(world: World, environment: Mapping[str, str]) -> dict[str, str]:
    """What torch's `env://` asks for; of SLURM's variables where torchrun has set none."""
    job = int(environment.get("SLURM_JOB_ID", "0"))
    return {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST", "localhost")),
        "MASTER_PORT": str(FIRST_PORT + job % PORTS),
    }


def first_host(nodes: str) -> str:
    """That of a list as SLURM writes it, on which `srun` puts task 0 (see the hostlists of `man scontrol`).

    >>> [first_host(nodes) for nodes in ("gpu7", "gpu7,cpu1", "gpu[08-11,14],cpu1", "r[2,5]n[3-4]")]
    ['gpu7', 'gpu7', 'gpu08', 'r2n3']
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else nodes)


@contextmanager
def _peers() -> Iterator[None]:
    """A collective that fails because another process is gone becomes PeerLostError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in _LOST_PEER):
            raise PeerLostError(f"this process lost the others ({one_line(error)[:200]})") from error
        raise


def let_the_cause_speak() -> None:
    """After PeerLostError: the process that failed first says why; torchrun ends this one before the wait is over."""
    time.sleep(CAUSE_SECONDS)
