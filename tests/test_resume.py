"""Interrupted runs: killed, stopped by a signal or the clock, on a full disk; and that going on changes no bit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_jobs import command, during_step, finish, rows_of, start, wait_for, weights_of, write_config

from vlformer_cli.config import Config, DataSource
from vlformer_cli.data.scenes.generate import Recipe, generate_scenes
from vlformer_cli.data.store import file_sha256
from vlformer_cli.engine.run import Run
from vlformer_cli.engine.run_folder import Checkpoints
from vlformer_cli.engine.step import StepResult
from vlformer_cli.engine.stop import ENDING, RESERVE, STARTED, StopRequest, began, minutes_left
from vlformer_cli.engine.train import train
from vlformer_cli.types import SettledError, VLFormerError


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_forty_steps_equal_twenty_a_kill_and_the_rest(small_run: Config, tmp_path: Path) -> None:
    longer = replace(small_run.train, steps=40, eval_every=20, save_every=10, log_every=1)
    assert small_run.data is not None
    config = write_config(
        replace(small_run, train=longer, data=replace(small_run.data, workers=1)), tmp_path / "config.yaml"
    )
    assert subprocess.run(command(config, tmp_path / "whole"), capture_output=True).returncode == 0
    process = start(config, tmp_path / "parts")
    wait_for(tmp_path / "parts/checkpoints/step-00000020.pt", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert (tmp_path / "parts/checkpoints/step-00000040.pt").exists() is False
    code, said = finish(start(config, tmp_path / "parts", "--resume"))
    assert code == 0, said
    assert "resume: going on after step " in said
    for name in ("model.safetensors", "best.safetensors"):
        assert weights_of(tmp_path / "whole" / name) == weights_of(tmp_path / "parts" / name)
    whole, parts = (torch.load(tmp_path / run / "checkpoints/step-00000040.pt") for run in ("whole", "parts"))
    for part in ("model", "average", "optimizer", "rng", "counters", "best", "step"):
        assert pickled(whole[part]) == pickled(parts[part]), part
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert [row["step"] for row in rows_of(tmp_path / "whole") if "loss" in row] == list(range(1, 41))


def pickled(value: Any) -> Any:
    """Nested containers with their tensors as bytes, for comparing."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: pickled(inner) for key, inner in value.items()}
    return [pickled(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_with_a_checkpoint_of_that_step(
    small_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = train(small_run, tmp_path / "whole")
    during_step(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    stopped = train(small_run, tmp_path / "parts")
    assert signal.getsignal(number) is before
    assert (stopped.step, stopped.stopped_by, stopped.is_planned) == (3, number.name, False)
    assert "step-00000003.pt" in checkpoints(tmp_path / "parts")
    resumed = train(small_run, tmp_path / "parts", resume=True)
    assert (resumed.step, resumed.stopped_by) == (6, None)
    assert weights_of(resumed.weights) == weights_of(whole.weights)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_the_command_says_how_a_signal_ended_it(small_run: Config, tmp_path: Path, run: Any, capsys: Any) -> None:
    config = write_config(small_run, tmp_path / "config.yaml")
    with pytest.MonkeyPatch.context() as monkeypatch:
        during_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run("train", "--config", config, "--output", tmp_path / "out") == 1
    assert (
        "vlformer: stopped by SIGTERM at step 2, a checkpoint is written: go on with --resume"
        in capsys.readouterr().err
    )


def test_a_run_ends_before_its_time_limit(small_run: Config, tmp_path: Path) -> None:
    stopped = train(small_run, tmp_path / "run", max_minutes=0)
    assert (stopped.step, stopped.is_planned) == (0, True)
    assert stopped.stopped_by == "its time limit (--max-minutes)"
    assert train(small_run, tmp_path / "run", resume=True, max_minutes=10).stopped_by is None


def test_the_time_limit_leaves_room_for_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("vlformer_cli.engine.stop.time.monotonic", lambda: now)
    stop = StopRequest(2.0, alone=True)  # until 1120
    stop.took("step", 2.0)
    stop.guess("checkpoint", 10.0)
    stop.guess("evaluation", 30.0)
    now = 1120 - ENDING - RESERVE * 12 - 0.1  # a step and a checkpoint still fit
    assert not stop.is_wanted(evaluates=False)
    assert StopRequest(0.0, alone=True).is_wanted(evaluates=False)
    now = 1120 - ENDING - RESERVE * 42 - 0.1
    assert not stop.is_wanted(evaluates=True)
    now += 0.2
    assert not stop.is_wanted(evaluates=False)
    stop.took("evaluation", 20.0)  # known now, and shorter than it was thought to be
    assert not stop.is_wanted(evaluates=True)
    stop.took("evaluation", 31.0)
    assert stop.is_wanted(evaluates=True)
    assert stop.is_planned


def test_a_run_stops_where_its_first_checkpoint_might_be_late(
    small_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlformer_cli.engine.train.SLOW_DISK", 1.0)  # a byte a second
    stopped = train(small_run, tmp_path / "run", max_minutes=60)
    assert (stopped.step, stopped.is_planned) == (1, True)


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps to ask")
def test_the_time_limit_counts_from_the_beginning_of_the_command() -> None:
    own = began({})
    assert own < time.time()
    assert own == pytest.approx(start_that_ps_says(), abs=1.5)
    assert began({STARTED: "1000.5"}) == 1000.5
    assert began({STARTED: "nonsense"}) == pytest.approx(own, abs=0.5)
    assert minutes_left(None, {}) is None
    assert minutes_left(10, {STARTED: str(time.time() - 240)}) == pytest.approx(6, abs=0.1)
    assert minutes_left(3, {STARTED: str(time.time() - 240)}) == 0


def start_that_ps_says() -> float:
    """When this process was started, as ps says it."""
    said = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return time.time() - float(said.stdout)


def test_only_the_newest_checkpoints_are_kept(small_run: Config, tmp_path: Path) -> None:
    train(replace(small_run, train=replace(small_run.train, save_every=1, keep=3)), tmp_path / "run")
    names = [f"step-0000000{step}.pt" for step in (4, 5, 6)]
    assert checkpoints(tmp_path / "run") == sorted([*names, *(f"{name}.sha256" for name in names)])


def test_a_checkpoint_has_a_digest_that_sha256sum_reads(small_run: Config, tmp_path: Path) -> None:
    train(small_run, tmp_path / "run")
    found = subprocess.run(
        ["sha256sum", "--check", "step-00000006.pt.sha256"], cwd=tmp_path / "run/checkpoints", capture_output=True
    )
    assert found.returncode == 0


@pytest.mark.parametrize("damage", ["cut in half", "one byte changed", "cut, without digest"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    small_run: Config, tmp_path: Path, capsys: Any, damage: str, keep: int
) -> None:
    whole = train(small_run, tmp_path / "run")
    expected, newest = weights_of(whole.weights), tmp_path / "run/checkpoints/step-00000006.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "one byte changed" else content[: len(content) // 2])
    if "without" in damage:
        newest.with_name("step-00000006.pt.sha256").unlink()
    capsys.readouterr()
    resumed = train(replace(small_run, train=replace(small_run.train, keep=keep)), tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert f"{newest} is damaged; it is kept as step-00000006.pt.damaged" in said
    assert "going on after step 4 from" in said
    assert weights_of(resumed.weights) == expected
    assert "step-00000006.pt" in checkpoints(tmp_path / "run")


def test_with_all_checkpoints_damaged_nothing_is_touched(small_run: Config, tmp_path: Path) -> None:
    train(small_run, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").glob("*.pt"):
        path.write_bytes(b"cut off")
    before = {path: file_sha256(path) for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(VLFormerError, match=r"all are damaged: .*step-00000006\.pt.*step-00000004\.pt"):
        train(small_run, tmp_path / "run", resume=True)
    assert {path: file_sha256(path) for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_that_would_run_code_is_damaged_and_does_not_run(small_run: Config, tmp_path: Path) -> None:
    train(small_run, tmp_path / "run")
    newest = tmp_path / "run/checkpoints/step-00000006.pt"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"step": 6, "model": Hostile()}, newest)
    newest.with_name("step-00000006.pt.sha256").unlink()
    assert train(small_run, tmp_path / "run", resume=True).step == 6
    assert not (tmp_path / "ran").exists()


def test_a_run_is_not_overwritten(small_run: Config, tmp_path: Path) -> None:
    train(small_run, tmp_path / "run")
    with pytest.raises(VLFormerError, match=r"holds a run already: add --resume"):
        train(small_run, tmp_path / "run")


def test_two_jobs_do_not_train_in_one_folder(
    small_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlformer_cli.engine.run_folder.LOCK_SECONDS", 0.1)
    refused = []

    def start_another() -> None:
        with pytest.raises(VLFormerError, match=r"another process is training in .*run: wait for it, end it, or give"):
            train(small_run, tmp_path / "run", resume=True)
        refused.append(True)

    during_step(monkeypatch, 3, start_another)
    assert train(small_run, tmp_path / "run").step == 6
    assert refused == [True]
    assert train(small_run, tmp_path / "run", resume=True).step == 6


def test_what_changed_in_the_config_is_named_field_by_field(small_run: Config, tmp_path: Path) -> None:
    train(small_run, tmp_path / "run")
    assert small_run.data is not None
    other = replace(
        small_run,
        train=replace(small_run.train, lr=2e-3, log_every=5, threads=2, frozen=("backbone",)),
        data=replace(small_run.data, rotate_degrees=3.0),
    )
    with pytest.raises(VLFormerError) as caught:
        train(other, tmp_path / "run", resume=True)
    message = str(caught.value)
    assert (
        "data.rotate_degrees was 15.0, is 3.0; train.frozen was [], is ['backbone']; train.lr was 0.001, is 0.002."
        in message
    )
    assert "log_every" not in message  # how a run is done may change
    assert "threads" not in message


def test_data_that_changed_is_named(small_run: Config, tmp_path: Path) -> None:
    assert small_run.data is not None
    folder = tmp_path / "scenes"
    generate_scenes(folder, images=20, seed=1, recipe=Recipe(size=96), workers=1)
    source = replace(small_run.data.train[0], path=str(folder))
    config = replace(small_run, data=replace(small_run.data, train=(source,), val=None))
    train(config, tmp_path / "run")
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    import shutil

    shutil.rmtree(folder)
    generate_scenes(folder, images=21, seed=1, recipe=Recipe(size=96), workers=1)
    assert len((folder / "train.jsonl").read_text().splitlines()) != len(lines)
    with pytest.raises(VLFormerError, match=r"the data set scenes-seed1 changed since the run in .* began"):
        train(config, tmp_path / "run", resume=True)


def test_resume_in_a_new_folder_starts_a_run(small_run: Config, tmp_path: Path, capsys: Any) -> None:
    short = replace(small_run, train=replace(small_run.train, steps=1))
    assert train(short, tmp_path / "new", resume=True).weights.is_file()
    assert f"resume: no checkpoint in {tmp_path / 'new'}, so a new run begins" in capsys.readouterr().err


def test_pictures_that_others_stand_in_for_are_counted_and_named(
    small_run: Config, tmp_path: Path, capsys: Any
) -> None:
    generate_scenes(tmp_path / "scenes", images=40, seed=7, recipe=Recipe(size=96), workers=1)
    for picture in sorted((tmp_path / "scenes/images/train").iterdir())[::2]:
        picture.unlink()
    assert small_run.data is not None
    config = replace(small_run, data=replace(small_run.data, train=(DataSource(str(tmp_path / "scenes")),)))
    whole = train(config, tmp_path / "whole")
    said = capsys.readouterr().err
    assert len(re.findall(r"data: \S+\.jpg is not there: check the path; another picture stands in", said)) == 1
    counts = [row["unreadable"] for row in rows_of(tmp_path / "whole") if "loss" in row]
    assert counts == sorted(counts)
    assert counts[-1] > 1
    assert f"{counts[-1]} pictures unreadable" in said
    stopped = train(config, tmp_path / "parts", max_minutes=0)
    assert stopped.step == 0
    assert weights_of(train(config, tmp_path / "parts", resume=True).weights) == weights_of(whole.weights)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_weights_without_a_checkpoint_are_not_trained_over(small_run: Config, tmp_path: Path) -> None:
    """Whoever deletes the checkpoints of a finished run keeps its weights and its log, whatever is typed."""
    train(small_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = {path: file_sha256(path) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(SettledError, match=r"holds the weights of a run but no checkpoint"):
        train(small_run, tmp_path / "run", resume=True)
    assert {path: file_sha256(path) for path in before} == before


def test_a_whole_checkpoint_that_cannot_be_loaded_is_not_called_damaged(
    small_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small_run, tmp_path / "run")
    before = checkpoints(tmp_path / "run")

    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr("vlformer_cli.engine.run_folder.torch.load", no_memory)
    with pytest.raises(VLFormerError, match=r"step-00000006\.pt is whole, .* cannot be loaded: can't allocate memory"):
        train(small_run, tmp_path / "run", resume=True)
    assert checkpoints(tmp_path / "run") == before


def test_a_validation_split_without_samples_is_refused_at_once(small_run: Config, tmp_path: Path) -> None:
    generate_scenes(tmp_path / "scenes-few", images=5, seed=1, recipe=Recipe(size=96), workers=1)
    assert small_run.data is not None
    data = replace(small_run.data, val=DataSource(str(tmp_path / "scenes-few"), split="val"))
    with pytest.raises(SettledError, match=r"scenes-few: split val is empty"):
        train(replace(small_run, data=data), tmp_path / "run")


def test_an_evaluation_that_fails_does_not_end_a_run(small_run: Config, tmp_path: Path, capsys: Any) -> None:
    generate_scenes(tmp_path / "scenes", images=40, seed=7, recipe=Recipe(size=96), workers=1)
    shutil.rmtree(tmp_path / "scenes/images/val")
    assert small_run.data is not None
    data = replace(small_run.data, val=DataSource(str(tmp_path / "scenes"), split="val"))
    done = train(replace(small_run, data=data), tmp_path / "run")
    assert (done.step, done.best, done.weights.is_file()) == (6, None, True)
    assert capsys.readouterr().err.count("evaluation: left out, ") == 2  # every three steps


def test_a_resumed_run_needs_nothing_that_it_was_initialised_from(
    small_run: Config, small_weights: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(small_weights.read_bytes())
    config = replace(small_run, init=str(start))
    train(config, tmp_path / "run")
    start.unlink()
    train(config, tmp_path / "run", resume=True)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["initialisation"]["files"] == {str(start): file_sha256(small_weights)}
    assert [again["after_step"] for again in manifest["resumed"]] == [6]


def test_what_a_killed_process_left_half_written_is_removed(small_run: Config, tmp_path: Path) -> None:
    train(small_run, tmp_path / "run")
    left = [tmp_path / "run/.model.safetensors.partial-x1", tmp_path / "run/checkpoints/.step-00000008.pt.partial-x2"]
    for path in left:
        path.write_bytes(b"half")
    train(small_run, tmp_path / "run", resume=True)
    assert not any(path.exists() for path in left)


@contextlib.contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Writes beyond so many bytes of a file fail, as on a full disk (with EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_not_the_run(
    small_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    expected = weights_of(train(small_run, tmp_path / "whole").weights)
    full = contextlib.ExitStack()
    during_step(monkeypatch, 2, lambda: full.enter_context(files_at_most(10_000)))
    original = Run.now

    def now(run: Run, result: StepResult) -> Any:
        if run.step == 5:
            full.close()
        return original(run, result)

    monkeypatch.setattr(Run, "now", now)
    capsys.readouterr()
    with full:
        trained = train(small_run, tmp_path / "run")
    said = capsys.readouterr().err
    assert "model.safetensors could not be written" in said
    assert re.search(r"step 4: .*step-00000004.pt could not be written: .*; the run goes on", said)
    assert weights_of(trained.weights) == expected
    assert [n for n in checkpoints(tmp_path / "run") if n.endswith(".pt")] == ["step-00000002.pt", "step-00000006.pt"]
    assert not list((tmp_path / "run").rglob("*.partial-*"))


def test_on_a_full_disk_the_older_checkpoints_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        kept.save(step, {"step": step})
    room = 2  # checkpoints: a third fails as long as two are there
    original = torch.save

    def save(state: Any, path: Path) -> None:
        if len(kept.steps()) >= room:
            raise RuntimeError("enforce fail: unexpected pos")
        original(state, path)

    monkeypatch.setattr(torch, "save", save)
    kept.save(3, {"step": 3})
    assert kept.steps() == [3, 2]
    room = 1
    with pytest.raises(OSError, match=r"step-00000004\.pt could not be written: enforce fail"):
        kept.save(4, {"step": 4})
    assert kept.steps() == [3]
    assert next(kept.load_newest()) == (3, {"step": 3})


def test_a_disk_that_stays_full_ends_the_run_with_one_line(
    small_run: Config, tmp_path: Path, run: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(small_run, tmp_path / "config.yaml")
    full = contextlib.ExitStack()
    during_step(monkeypatch, 3, lambda: full.enter_context(files_at_most(10_000)))
    with full:
        assert run("train", "--config", config, "--output", tmp_path / "out") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("vlformer: ")
    assert "model.safetensors" in last
    assert train(small_run, tmp_path / "out", resume=True).step == 6
