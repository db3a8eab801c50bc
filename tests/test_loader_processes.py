"""The processes that load data beside training: signals that reach them too, and what is said when one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_jobs import command, finish, start, wait_for, write_config
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vlformer_cli.config import Config
from vlformer_cli.data.scenes.generate import Recipe, generate_scenes
from vlformer_cli.engine.loader import load, worker_failures
from vlformer_cli.types import Batch


@pytest.fixture
def long_run(small_run: Config) -> Config:
    """With two loader processes, and no end in sight."""
    assert small_run.data is not None
    return replace(
        small_run,
        data=replace(small_run.data, workers=2),
        train=replace(small_run.train, steps=100_000, eval_every=100_000, save_every=100_000, log_every=1),
    )


def loaders_of(trainer: int) -> list[int]:
    """The loader processes of a training process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (path / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if parent == trainer and b"spawn_main" in words:
            found.append(int(path.name))
    return found


def start_group(config: Config, folder: Path) -> subprocess.Popen[str]:
    """A run whose processes are one group, so that a signal can reach them all."""
    return subprocess.Popen(
        command(write_config(config, folder / "config.yaml"), folder / "run"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_stops_the_run_with_a_checkpoint(
    long_run: Config, tmp_path: Path, number: signal.Signals
) -> None:
    """As a terminal's Ctrl-C and a scheduler's end do."""
    process = start_group(long_run, tmp_path)
    wait_for(tmp_path / "run/metrics.jsonl", process)
    loaders = loaders_of(process.pid)
    assert len(loaders) == 2
    os.killpg(process.pid, number)
    code, said = finish(process, seconds=60)
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith(f"vlformer: stopped by {number.name} at step "), said
    step = int(last.split("at step ")[1].split(",")[0])
    assert (tmp_path / f"run/checkpoints/step-{step:08d}.pt").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in loaders)


def test_a_signal_while_loaders_are_still_importing_stops_the_run_in_order(long_run: Config, tmp_path: Path) -> None:
    process = start_group(long_run, tmp_path)
    while len(loaders_of(process.pid)) < 2 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    code, said = finish(process, seconds=60)
    assert code == 1
    assert said.splitlines()[-1].startswith("vlformer: stopped by SIGTERM at step "), said


def test_a_killed_loader_process_ends_the_run_with_a_remedy(long_run: Config, tmp_path: Path) -> None:
    process = start(write_config(long_run, tmp_path / "config.yaml"), tmp_path / "run")
    wait_for(tmp_path / "run/metrics.jsonl", process)
    os.kill(loaders_of(process.pid)[0], signal.SIGKILL)
    code, said = finish(process, seconds=60)
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("vlformer: a process that loads data ended (DataLoader worker (pid")
    assert last.endswith("perhaps memory ran out, then lower data.workers; the run can go on with --resume")
    assert "Traceback" not in said


@pytest.mark.parametrize("words", [(), ("--gpus", "2")])
def test_what_failed_in_a_loader_process_is_said_in_one_line(
    long_run: Config, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert long_run.data is not None
    folder = tmp_path / "scenes"
    generate_scenes(folder, images=4, seed=1, recipe=Recipe(size=96), workers=1)
    for picture in (folder / "images").rglob("*.*"):
        picture.write_bytes(b"no picture")
    source = replace(long_run.data.train[0], path=str(folder))
    config = replace(long_run, data=replace(long_run.data, train=(source,), val=None))
    code, said = finish(start(write_config(config, tmp_path / "config.yaml"), tmp_path / "run", *words), seconds=90)
    assert code == 1
    assert "Traceback" not in said
    complaint = next(line for line in said.splitlines() if line.startswith("vlformer: "))
    assert complaint.startswith("vlformer: 10 pictures in a row of scenes-seed1/train cannot be read; the last")


class Steps(Dataset[tuple[Batch, ...]]):
    """Items of nothing; module level, so that a spawned process finds it."""

    def __getitem__(self, step: int) -> tuple[Batch, ...]:
        return ()


def test_a_worker_that_goes_while_the_run_fails_does_not_hide_why(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = load(Steps(), range(4), workers=1, device=torch.device("cpu"))
    next(batches)
    end, calls = _MultiProcessingDataLoaderIter._shutdown_workers, list[str]()

    def shut_down(iterator: _MultiProcessingDataLoaderIter) -> None:
        """As when the signal that a worker has gone arrives meanwhile; later calls are of the iterator's `__del__`."""
        end(iterator)
        calls.append("ended")  # not the iterator itself: that would bring it back to life
        if len(calls) == 1:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Aborted. ")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", shut_down)
    with pytest.raises(ZeroDivisionError), worker_failures(), closing(batches):
        raise ZeroDivisionError
    assert len(calls) >= 1
