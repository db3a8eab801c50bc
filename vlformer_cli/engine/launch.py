"""Starting the processes of a training job with torchrun, in this process, and saying what became of them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args
from torch.distributed.run import run as torchrun

from vlformer_cli.engine.device import usable_cores
from vlformer_cli.engine.distributed import world_from
from vlformer_cli.engine.stop import STARTED, began
from vlformer_cli.types import VLFormerError

JOB_NAME = "vlformer"  # of the rendezvous: machines that name the same endpoint and job meet
_ELASTIC_LOGGERS = ("torch.distributed.elastic", "torch.distributed.run", "torch.distributed.launcher.api")


@dataclass(frozen=True, slots=True)
class Job:
    """How many processes, and where."""

    gpus: int = 1
    """Processes on each machine."""
    nodes: int = 1
    """Machines."""
    node_rank: int | None = None
    """The number of this machine; machine 0 is the one that `rdzv_endpoint` names."""
    rdzv_endpoint: str | None = None
    """host:port where the machines meet."""
    max_restarts: int = 0
    """So many times all processes are started again after one failed, from the last checkpoint."""

    @property
    def needs_torchrun(self) -> bool:
        """Whether this job is more than this process."""
        return self.gpus * self.nodes > 1 or self.max_restarts > 0

    @staticmethod
    def is_started(environment: Mapping[str, str]) -> bool:
        """Whether this process is already one of those of a job."""
        return "RANK" in environment and "WORLD_SIZE" in environment

    def refuse_to_multiply(self, environment: Mapping[str, str]) -> None:
        """Raises VLFormerError where others have started processes already, and not those that this job asks for."""
        if not self.needs_torchrun:
            return
        wanted, size = self.gpus * self.nodes, world_from(environment).size
        if self.is_started(environment):
            if wanted not in (1, size):
                raise VLFormerError(
                    f"--gpus {self.gpus} asks for {wanted} processes, but RANK and WORLD_SIZE in the environment say "
                    f"that this is one of {size}: leave --gpus and --nodes out, or unset these variables"
                )
        elif size > 1 and size != self.nodes:
            raise VLFormerError(
                f"srun has started {size} processes, and each would start a job of its own: leave --gpus and "
                "--max-restarts out, or let srun start one task on each machine and give --nodes"
            )

    def check(self, device: str) -> None:
        """Raises VLFormerError for what cannot be started."""
        if self.nodes > 1 and not self.rdzv_endpoint:
            raise VLFormerError(f"--nodes {self.nodes} needs --rdzv-endpoint HOST:PORT, the same on every machine")
        if self.node_rank is not None and not 0 <= self.node_rank < self.nodes:
            raise VLFormerError(f"--node-rank {self.node_rank} is not one of 0 to {self.nodes - 1} (--nodes)")
        count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
        if 0 < count < self.gpus:
            raise VLFormerError(f"--gpus {self.gpus}, but this machine has {count}: use fewer, or --device cpu")
        if device == "cuda" and not count:
            raise VLFormerError(f"--gpus {self.gpus} --device cuda, but no GPU is usable here: use --device cpu")


def launch(job: Job, arguments: Sequence[str]) -> None:
    """Runs `vlformer ARGUMENTS` in every process of the job on this machine and waits for them.

    Raises VLFormerError when one of them failed, after the others were ended.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // job.gpus)))  # or torchrun sets 1, and says so
    # or processes that are started again read the addresses of those that have ended (torch 2.14)
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # or of a process that was killed Python says what it left behind before anybody says that it was killed
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    os.environ.setdefault(STARTED, str(began(os.environ)))
    # torchrun kills 30 s after it was asked to stop, before which a slow step and a large checkpoint are not done
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    _silence_torchrun()
    try:
        with tempfile.TemporaryDirectory(prefix="vlformer-job-", ignore_cleanup_errors=True) as folder:
            options = [*_torchrun_options(job), "--log-dir", folder]
            torchrun(parse_args([*options, "-m", "vlformer_cli", *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise VLFormerError(f"the job ended: {_describe(rank, failure)}") from error
    except SignalException as error:
        raise VLFormerError(f"the job was ended by {signal.Signals(error.sigval).name}") from error


def _torchrun_options(job: Job) -> list[str]:
    options = ["--nproc-per-node", str(job.gpus), "--max-restarts", str(job.max_restarts)]
    if job.nodes == 1 and job.rdzv_endpoint is None:
        return [*options, "--standalone"]
    options += ["--nnodes", str(job.nodes), "--rdzv-backend", "c10d", "--rdzv-id", JOB_NAME]
    if job.rdzv_endpoint:
        options += ["--rdzv-endpoint", job.rdzv_endpoint]
    if job.node_rank is not None:
        options += ["--rdzv-conf", f"is_host={job.node_rank == 0}"]
    return options


def _describe(rank: int, failure: ProcessFailure) -> str:
    who = f"process {rank} (pid {failure.pid})"
    if failure.exitcode >= 0:
        return f"{who} failed with exit code {failure.exitcode}; its message is above"
    name = failure.signal_name()
    hint = "; perhaps memory ran out" if failure.exitcode == -signal.SIGKILL else ""
    return f"{who} was killed by {name}{hint}; the run can go on with --resume"


def _silence_torchrun() -> None:
    """torchrun's own log lines are for its developers; a failed process is reported in words of ours."""
    for name in _ELASTIC_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_tell_of_failed_process)


def _tell_of_failed_process(record: logging.LogRecord) -> bool:
    """torchrun logs a failed process before it starts the job again; that is told in one plain line."""
    if not str(record.msg).startswith("failed (exitcode"):
        return True
    code, local_rank, pid = record.args[:3] if isinstance(record.args, tuple) else ("?", "?", "?")
    print(f"vlformer: local process {local_rank} (pid {pid}) ended with exit code {code}", file=sys.stderr, flush=True)
    return False
