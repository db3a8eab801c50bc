"""Jobs of several processes, on the CPU with gloo: the same numbers, whoever starts them and whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_jobs import command, finish, losses_of, rows_of, start, wait_for, weights_of, write_config

from vlformer_cli.config import Config
from vlformer_cli.engine.distributed import World, world_from
from vlformer_cli.engine.launch import Job
from vlformer_cli.engine.train import train
from vlformer_cli.types import VLFormerError

LOSS_TOLERANCE = 1e-5


@pytest.fixture
def job(small_run: Config) -> Config:
    """Twenty steps of four pictures, with evaluation at the end; the longer expressions are cut."""
    assert small_run.data is not None
    return replace(
        small_run,
        model=replace(small_run.model, max_tokens=10),
        data=replace(small_run.data, images_per_step=4),
        train=replace(small_run.train, steps=20, lr=1e-4, warmup=100, eval_every=20, eval_samples=20, save_every=5),
    )


@pytest.fixture
def one_process(job: Config, tmp_path: Path) -> Path:
    train(job, tmp_path / "one")
    return tmp_path / "one"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def assert_same_numbers(found: Path, expected: Path) -> None:
    assert len(losses_of(expected)) == 20
    assert losses_of(found) == pytest.approx(losses_of(expected), rel=0, abs=LOSS_TOLERANCE)
    ours, theirs = (rows_of(run)[-1]["val"]["chosen_query"] for run in (found, expected))
    assert ours["count"] == theirs["count"] == 10
    assert ours["miou"] == pytest.approx(theirs["miou"], abs=1e-3)
    for counter in ("expressions", "cut", "unreadable"):
        assert [row[counter] for row in rows_of(found)] == [row[counter] for row in rows_of(expected)]
    assert rows_of(expected)[-1]["cut"] > 3


def test_two_processes_give_the_losses_of_one_whoever_starts_them(
    job: Config, one_process: Path, tmp_path: Path
) -> None:
    config = write_config(job, tmp_path / "config.yaml")
    code, said = finish(start(config, tmp_path / "gpus", "--gpus", "2"))
    assert code == 0, said
    assert "each of 4 pictures (processes 2 x forwards 1 x pictures 2)" in said
    assert_same_numbers(tmp_path / "gpus", one_process)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
             "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost"}  # fmt: skip
    tasks = [start(config, tmp_path / "slurm", **slurm, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in "01"]
    for task in tasks:
        code, said = finish(task)
        assert code == 0, said
    same = weights_of(tmp_path / "gpus/model.safetensors")
    assert weights_of(tmp_path / "slurm/model.safetensors") == same
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    words = [*torchrun, *command(config, tmp_path / "torchrun")[2:]]
    assert subprocess.run(words, capture_output=True).returncode == 0
    assert weights_of(tmp_path / "torchrun/model.safetensors") == same


@pytest.mark.slow
def test_two_processes_whose_words_come_first(job: Config, tmp_path: Path) -> None:
    model = replace(job.model, pointer=True, anchors=True, mix_levels=True)
    assert job.data is not None
    data = replace(job.data, images_per_step=3, images_while_words_first=5)  # not to be shared evenly
    staged = replace(job, model=model, data=data, train=replace(job.train, words_first=8, words_first_lr_scale=0.5))
    train(staged, tmp_path / "one")
    code, said = finish(start(write_config(staged, tmp_path / "config.yaml"), tmp_path / "two", "--gpus", "2"))
    assert code == 0, said
    assert "each of 3 pictures (processes 2 x forwards 1 x pictures 1 or 2)" in said
    assert "; words first: 8 of them, of 5 pictures" in said
    assert_same_numbers(tmp_path / "two", tmp_path / "one")


def test_accumulated_forwards_give_the_losses_of_one(job: Config, one_process: Path, tmp_path: Path) -> None:
    for forwards in (2, 3):  # 3: the first of them takes two of the four pictures
        train(replace(job, train=replace(job.train, accumulate=forwards)), tmp_path / str(forwards))
        assert_same_numbers(tmp_path / str(forwards), one_process)


def test_a_killed_worker_is_brought_back_from_the_last_checkpoint(job: Config, tmp_path: Path) -> None:
    config = write_config(job, tmp_path / "config.yaml")
    whole = start(config, tmp_path / "whole", "--gpus", "2")
    assert finish(whole)[0] == 0
    parts = start(config, tmp_path / "parts", "--gpus", "2", "--max-restarts", "1")
    wait_for(tmp_path / "parts/checkpoints/step-00000005.pt", parts)
    os.kill(workers_of(parts.pid)[1], signal.SIGKILL)
    code, said = finish(parts)
    assert code == 0, said
    assert "ended with exit code -9" in said
    assert "resume: going on after step" in said
    assert weights_of(tmp_path / "parts/model.safetensors") == weights_of(tmp_path / "whole/model.safetensors")
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")


def workers_of(launcher: int) -> list[int]:
    """The processes that `launcher` started and that train: in the order of their ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = dict(v.split(b"=", 1) for v in (path / "environ").read_bytes().split(b"\0") if b"=" in v)
        except (OSError, ValueError):  # it has ended
            continue
        if parent == launcher and b"vlformer_cli" in words and b"RANK" in variables:
            found.append((int(variables[b"RANK"]), int(path.name)))
    return [pid for _, pid in sorted(found)]


def test_a_worker_that_dies_ends_the_job_and_leaves_nothing_running(job: Config, tmp_path: Path) -> None:
    config = write_config(job, tmp_path / "config.yaml")
    process = start(config, tmp_path / "run", "--gpus", "2", "--set", "data.workers=1")
    wait_for(tmp_path / "run/checkpoints/step-00000005.pt", process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    code, said = finish(process, seconds=60)
    assert code == 1
    assert "lost the others" not in said
    assert "resource_tracker" not in said
    last = said.splitlines()[-1]
    assert last.startswith(f"vlformer: the job ended: process 1 (pid {workers[1]}) was killed by SIGKILL")
    assert "--resume" in last
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert "Traceback" not in said


def test_a_killed_launcher_leaves_nothing_running_and_a_checkpoint(job: Config, tmp_path: Path) -> None:
    longer = replace(job, train=replace(job.train, steps=100_000, eval_every=100_000, save_every=100_000, log_every=1))
    config = write_config(longer, tmp_path / "config.yaml")
    process = start(config, tmp_path / "run", "--gpus", "2")
    wait_for(tmp_path / "run/metrics.jsonl", process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    # the second job waits for the first to end in order; it goes on from where that stopped
    code, said = finish(start(config, tmp_path / "run", "--gpus", "2", "--resume", "--max-minutes", "0"))
    assert code == 0, said
    assert "resume: going on after step " in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    process.communicate()


def test_the_error_of_a_worker_comes_first_and_once(job: Config, tmp_path: Path) -> None:
    """Only process 1 fails; the others say nothing about having lost it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from vlformer_cli.engine.run import Run\n"
        "    from vlformer_cli.types import VLFormerError\n"
        "    def take(self, *args, **more): raise VLFormerError('the pictures of process 1 are gone')\n"
        "    Run.take = take\n"
    )
    config = write_config(job, tmp_path / "config.yaml")
    code, said = finish(start(config, tmp_path / "run", "--gpus", "2", PYTHONPATH=str(tmp_path)), seconds=120)
    assert code == 1
    complaints = [line for line in said.splitlines() if line.startswith("vlformer: ")]
    assert complaints[0] == "vlformer: the pictures of process 1 are gone"
    assert complaints[-1].startswith("vlformer: the job ended: process 1 (pid ")
    assert "failed with exit code 1; its message is above" in complaints[-1]
    assert "lost the others" not in said


def test_what_all_processes_complain_of_is_said_once(job: Config, tmp_path: Path) -> None:
    config = write_config(replace(job, train=replace(job.train, frozen=("no_such_part",))), tmp_path / "config.yaml")
    code, said = finish(start(config, tmp_path / "run", "--gpus", "2"))
    assert code == 1
    assert said.count("no parameter's name begins with 'no_such_part'") == 1


def test_what_is_refused_stays_refused_when_torchrun_starts_again(job: Config, tmp_path: Path) -> None:
    config = write_config(job, tmp_path / "config.yaml")
    train(replace(job, train=replace(job.train, steps=2)), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, said = finish(start(config, tmp_path / "run", "--gpus", "2", "--max-restarts", "1"))
    assert code == 1
    assert said.count("holds a run already: add --resume, or give another --output") == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_sigterm_to_a_job_writes_a_checkpoint(job: Config, tmp_path: Path) -> None:
    longer = replace(job, train=replace(job.train, steps=1000, eval_every=1000, save_every=1000, log_every=1))
    config = write_config(longer, tmp_path / "config.yaml")
    process = start(config, tmp_path / "run", "--gpus", "2")
    wait_for(tmp_path / "run/metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 1
    assert "stopped by SIGTERM at step " in said
    steps = int(said.split("stopped by SIGTERM at step ")[1].split(",")[0])
    assert (tmp_path / f"run/checkpoints/step-{steps:08d}.pt").exists()
    assert said.splitlines()[-1] == "vlformer: the job was ended by SIGTERM"


@pytest.mark.slow
def test_two_machines_meet_at_the_endpoint(job: Config, one_process: Path, tmp_path: Path) -> None:
    config = write_config(job, tmp_path / "config.yaml")
    words = ("--nodes", "2", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--node-rank")
    machines = [start(config, tmp_path / "run", *words, rank) for rank in ("0", "1")]
    for machine in machines:
        code, said = finish(machine)
        assert code == 0, said
    assert_same_numbers(tmp_path / "run", one_process)


def test_the_world_under_slurm_is_that_of_the_step() -> None:
    step = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_ID": "0",
            "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}  # fmt: skip
    assert world_from(step) == World(rank=5, size=8, local_rank=1, local_size=4)
    assert world_from({**step, "SLURM_CPUS_PER_TASK": "3"}).threads(0) == 3
    assert world_from({**step, "SLURM_CPUS_PER_TASK": "3"}).threads(2) == 2
    batch_script = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
    assert world_from(batch_script) == World()
    assert world_from({**step, "SLURM_STEP_NUM_TASKS": "1"}) == World()
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert world_from({**step, **torchrun}) == World(rank=1, size=2, local_rank=1, local_size=2)


SRUN = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_ID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}  # fmt: skip


@pytest.mark.parametrize(
    ("job", "environment", "message"),
    [
        (Job(gpus=8), SRUN, "srun has started 8 processes"),
        (Job(max_restarts=2), SRUN, "srun has started 8 processes"),
        (Job(gpus=8), {"RANK": "0", "WORLD_SIZE": "1"}, "this is one of 1"),
        (Job(gpus=2, nodes=2), {"RANK": "0", "WORLD_SIZE": "2"}, "this is one of 2"),
        (Job(), SRUN, None),
        (Job(gpus=4, nodes=8), SRUN, None),
        (Job(gpus=8), {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, None),
        (Job(gpus=2, nodes=2), {"RANK": "3", "WORLD_SIZE": "4"}, None),
        (Job(max_restarts=2), {"RANK": "3", "WORLD_SIZE": "4"}, None),
        (Job(gpus=8), {}, None),
    ],
)
def test_processes_are_not_multiplied(job: Job, environment: dict[str, str], message: str | None) -> None:
    with contextlib.nullcontext() if message is None else pytest.raises(VLFormerError, match=message):
        job.refuse_to_multiply(environment)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(nodes=2), "needs --rdzv-endpoint HOST:PORT"),
        (Job(nodes=2, node_rank=2, rdzv_endpoint="a:1"), "--node-rank 2 is not one of 0 to 1"),
    ],
)
def test_jobs_that_cannot_start_are_refused(job: Job, message: str) -> None:
    with pytest.raises(VLFormerError, match=message):
        job.check("cpu")


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    Job(gpus=4).check("auto")
    with pytest.raises(VLFormerError, match="--gpus 8, but this machine has 4"):
        Job(gpus=8).check("auto")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    Job(gpus=8).check("auto")  # as many processes on the CPU
    with pytest.raises(VLFormerError, match="no GPU is usable here: use --device cpu"):
        Job(gpus=8).check("cuda")


def test_fewer_pictures_than_processes_and_forwards_are_refused(job: Config, tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match=r"images_per_step is 4, fewer than 1 processes x 5 forwards.* 5 or more"):
        train(replace(job, train=replace(job.train, accumulate=5)), tmp_path / "run")
