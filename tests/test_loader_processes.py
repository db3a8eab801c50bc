"""The processes that load data beside training: signals that reach them too, and what is said when one fails."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_jobs import command, finish, start, wait_for, write_config
from torch.utils.data import Dataset

from vlformer_cli.config import Config
from vlformer_cli.data.build import build_training_data
from vlformer_cli.data.scenes.generate import Recipe, generate_scenes
from vlformer_cli.engine import loader
from vlformer_cli.engine.load_worker import pack, unpack
from vlformer_cli.engine.loader import load
from vlformer_cli.types import Batch, VLFormerError


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
    state = json.loads((tmp_path / "run/state.json").read_text())
    assert (state["state"], state["step"], state["reason"]) == ("stopped", step, number.name)
    assert not any(Path(f"/proc/{pid}").exists() for pid in loaders)


def test_a_signal_while_loaders_are_still_importing_stops_the_run_in_order(long_run: Config, tmp_path: Path) -> None:
    process = start_group(long_run, tmp_path)
    while len(loaders_of(process.pid)) < 2 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    code, said = finish(process, seconds=60)
    assert code == 1
    assert said.splitlines()[-1].startswith("vlformer: stopped by SIGTERM at step "), said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_killed_loader_process_ends_the_run_with_a_remedy(
    long_run: Config, tmp_path: Path, number: signal.Signals
) -> None:
    """As the kernel does where memory or shared memory ran out."""
    process = start(write_config(long_run, tmp_path / "config.yaml"), tmp_path / "run")
    wait_for(tmp_path / "run/metrics.jsonl", process)
    loader = loaders_of(process.pid)[0]
    os.kill(loader, number)
    code, said = finish(process, seconds=60)
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith(f"vlformer: a process that loads data ended (pid {loader}, killed by {number.name}): ")
    assert all(word in last for word in ("data.workers", "--shm-size", "/dev/shm has ", "go on with --resume")), last
    assert "Traceback" not in said
    state = json.loads((tmp_path / "run/state.json").read_text())
    assert (state["state"], last.removeprefix("vlformer: ")) == ("failed", state["reason"])


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


def test_a_run_that_waits_for_a_batch_can_be_stopped(long_run: Config, tmp_path: Path) -> None:
    """Its loaders are alive and do nothing, as where a network disk does not answer."""
    process = start_group(long_run, tmp_path)
    wait_for(tmp_path / "run/metrics.jsonl", process)
    loaders = loaders_of(process.pid)
    for pid in loaders:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1)  # what is loaded already is used up
    process.send_signal(signal.SIGTERM)
    code, said = finish(process, seconds=60)
    assert code == 1
    assert said.splitlines()[-1].startswith("vlformer: stopped by SIGTERM at step "), said
    assert json.loads((tmp_path / "run/state.json").read_text())["state"] == "stopped"
    assert not any(Path(f"/proc/{pid}").exists() for pid in loaders)


class Items(Dataset[tuple[Batch, ...]]):
    """Module level, so that a worker finds it: `items[step]` is made so."""

    def __init__(self, **more: Any) -> None:
        self.more = more

    def __getitem__(self, step: int) -> tuple[Batch, ...]:
        if error := self.more.get(f"raises_at_{step}"):
            raise error
        if step == self.more.get("sleeps_at"):
            time.sleep(1000)
        if step == self.more.get("dies_at"):
            os.kill(os.getpid(), signal.SIGBUS)
        return (an_item(step),)


def an_item(step: int) -> Batch:
    number = torch.tensor([step])
    return Batch(torch.full((1, 3, 64, 64), step, dtype=torch.uint8), number, number, number, number, number, ())


def draws_of(batches: Iterator[tuple[Batch, ...]]) -> list[int]:
    return [int(batch.tokens) for (batch,) in batches]


CPU = torch.device("cpu")


def test_items_come_in_order_and_whatever_the_number_of_workers() -> None:
    assert draws_of(load(Items(), range(3, 10), workers=2, device=CPU)) == list(range(3, 10))
    assert draws_of(load(Items(), range(3, 10), workers=0, device=CPU)) == list(range(3, 10))


def test_what_a_worker_sends_is_the_batch_bit_for_bit(small_run: Config) -> None:
    for batch in build_training_data(small_run)[1]:
        (found,) = unpack(pack([batch]))
        for name in Batch.TENSORS:
            mine, other = getattr(batch, name), getattr(found, name)
            assert (mine is None and other is None) or (mine.dtype == other.dtype and torch.equal(mine, other))
        assert (found.samples, found.draw, found.cut) == (batch.samples, batch.draw, batch.cut)


def test_an_error_in_a_worker_is_raised_where_its_item_is_due() -> None:
    batches = load(Items(raises_at_2=OSError(28, "No space left on device")), range(9), workers=1, device=CPU)
    assert [len(next(batches)), len(next(batches))] == [1, 1]
    with pytest.raises(OSError, match="No space left on device") as caught, closing(batches):
        next(batches)
    assert "in __getitem__" in str(caught.value.__cause__)


class Unpicklable(Exception):
    def __init__(self, what: str) -> None:
        super().__init__(what, threading.Lock())
        self.args = (what, threading.Lock())


def test_an_error_that_cannot_be_sent_is_said_all_the_same() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Unpicklable("a lock"))
    batches = load(Refusing(), range(2), workers=1, device=CPU)
    with pytest.raises(RuntimeError, match=r"Unpicklable: .*a lock"), closing(batches):
        next(batches)


class Refusing(Dataset[tuple[Batch, ...]]):
    def __getitem__(self, step: int) -> tuple[Batch, ...]:
        raise Unpicklable("a lock")


def test_a_dead_worker_and_one_that_cannot_be_started_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = load(Items(dies_at=1), range(4), workers=1, device=CPU)
    with (
        pytest.raises(VLFormerError, match=r"killed by SIGBUS\): .*data\.workers.*--shm-size.*/dev/shm"),
        closing(batches),
    ):
        assert len(list(batches)) == 1

    def start(process: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start)
    with pytest.raises(VLFormerError, match=r"could not be started .*unavailable\): .*data\.workers"):
        next(load(Items(), range(4), workers=2, device=CPU))


def test_a_wait_is_told_and_ends_where_the_run_has_to_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "PATIENCE", 0.3)
    monkeypatch.setattr(loader, "GRACE", 0.1)
    stop, began = threading.Event(), time.monotonic()
    batches = load(Items(sleeps_at=1), range(9), workers=1, device=CPU, has_to_stop=stop.is_set)
    with closing(batches):
        assert len(next(batches)) == 1
        threading.Timer(1.0, stop.set).start()
        assert next(batches) == ()
        assert list(batches) == []
    assert time.monotonic() - began < 60
    assert "data: no batch for 0 s; still waiting" in capsys.readouterr().err
