"""What a person sees of a run: rows, TensorBoard, Weights & Biases, the plot, the display, the dry run."""

from __future__ import annotations

import json
import os
import pty
import resource
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from small_jobs import rows_of, weights_of, write_config

from vlformer_cli.config import Config, DataSource, TrainConfig
from vlformer_cli.engine import dry_run
from vlformer_cli.engine.checkpoint import load_weights
from vlformer_cli.engine.evaluate import evaluate
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.engine.run_folder import read_rows
from vlformer_cli.engine.run_log import RunLog
from vlformer_cli.engine.train import train
from vlformer_cli.report.curves import save_curves
from vlformer_cli.report.live import Now, TrainDisplay
from vlformer_cli.types import VLFormerError


def with_train(config: Config, **changes: Any) -> Config:
    return replace(config, train=replace(config.train, **changes))


def test_tensorboard_reads_what_metrics_jsonl_says(small_run: Config, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped = train(with_train(small_run, tensorboard=True), tmp_path / "run", max_minutes=0)
    assert stopped.step == 0
    train(with_train(small_run, tensorboard=True), tmp_path / "run", resume=True)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    rows = rows_of(tmp_path / "run")
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(s, pytest.approx(v)) for s, v in losses]
    overlap = [(row["step"], row["val"]["chosen_query"]["miou"]) for row in rows if "val" in row]
    found = [(e.step, e.value) for e in events.Scalars("val/chosen_query/miou")]
    assert found == [(s, pytest.approx(v)) for s, v in overlap]
    assert len(losses) == 6
    assert len(overlap) == 2


def test_a_disk_that_is_full_for_a_while_costs_rows_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, TrainConfig(), resumed_at=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log.write({"step": 1, "loss": 1.0})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 9, before[1]))
        for step in (2, 3):
            log.write({"step": step, "loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for step in (4, 5):
        log.write({"step": step, "loss": 3.0})
    log.close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 4, 5]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")][-2:] == [4, 5]
    told = capsys.readouterr().err
    assert told.count("could not be written") == 2  # metrics.jsonl and TensorBoard, once each
    assert "Traceback" not in told


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_gets_the_same_rows_and_goes_on_with_the_same_run(
    small_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a stand-in: the service itself cannot be reached from tests."""
    runs, asked = [FakeRun(), FakeRun()], []
    fake = types.ModuleType("wandb")
    fake.util = types.SimpleNamespace(generate_id=lambda: f"id{len(asked)}")  # type: ignore[attr-defined]

    def init(**words: Any) -> FakeRun:
        asked.append(words)
        return runs[len(asked) - 1]

    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = with_train(small_run, wandb="refcoco")
    train(config, tmp_path / "run", max_minutes=0)
    train(config, tmp_path / "run", resume=True)
    assert [words["id"] for words in asked] == ["id0", "id0"]
    assert asked[0]["project"] == "refcoco"
    assert [run.finished for run in runs] == [1, 1]
    found = {step: numbers for step, numbers in runs[1].logged if "loss" in numbers}
    assert {s: n["loss"] for s, n in found.items()} == {
        row["step"]: row["loss"] for row in rows_of(tmp_path / "run") if "loss" in row
    }


def test_without_wandb_its_remedy_is_named(small_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(VLFormerError, match=r"pip install 'vlformer\[wandb\]'"):
        train(with_train(small_run, wandb="refcoco"), tmp_path / "run")


def test_the_best_weights_are_those_of_the_best_evaluation(small_run: Config, tmp_path: Path) -> None:
    assert small_run.data is not None
    frequent = with_train(small_run, eval_every=1, eval_samples=0, best_by="oiou")
    trained = train(frequent, tmp_path / "run")
    found = {row["step"]: row["val"]["chosen_query"]["oiou"] for row in rows_of(tmp_path / "run") if "val" in row}
    assert trained.best is not None
    value, step = trained.best
    assert value == max(found.values()) == found[step]
    assert step == min(s for s, v in found.items() if v == value)
    loaded = load_weights(tmp_path / "run/best.safetensors")
    assert loaded.manifest["step"] == step
    again = evaluate(Predictor(loaded.model, loaded.config), open_val(small_run))
    assert again.summary.oiou == pytest.approx(value, abs=2e-3)  # float16 weights
    if step != 6:
        assert weights_of(tmp_path / "run/best.safetensors") != weights_of(trained.weights)


def open_val(config: Config) -> Any:
    from vlformer_cli.data.build import open_split

    assert config.data is not None
    assert isinstance(config.data.val, DataSource)
    return open_split(config.data.val)


def test_the_curves_of_a_run_are_drawn(real_curves: None, small_run: Config, tmp_path: Path) -> None:
    train(small_run, tmp_path / "run")
    picture = cv2.imread(str(tmp_path / "run/curves.png"))
    assert picture.shape[0] > 500
    blue, green, red = (picture[..., channel].astype(int) for channel in range(3))
    assert ((blue > 200) & (red < 80) & (green < 180)).sum() > 100  # the first line's colour: something is drawn


def test_the_plotted_points_are_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[list[float], list[float]]] = {}
    from matplotlib.axes import Axes

    original = Axes.plot

    def plot(axes: Axes, x: Any, y: Any, **style: Any) -> Any:
        if "label" in style:
            drawn[style["label"]] = (list(x), list(y))
        return original(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    part = {"class": 1.0, "bce": 2.0, "dice": None, "lr": 1e-3}
    rows: list[dict[str, Any]] = [{"step": s, "loss": 5.0, **part} for s in (1, 2)]
    query = {"miou": 0.25, "oiou": 0.5, "pr@0.5": 0.125}
    rows.append({"step": 2, "val": {"data": "d", "chosen_query": query, "best_of_q": {"miou": 0.75}}})
    save_curves(rows, tmp_path / "curves.png", "run")
    assert drawn["loss"] == ([1, 2], pytest.approx([5.0, 5.0]))
    assert drawn["mIoU"] == ([2], [25.0])
    assert drawn["best of Q: mIoU"] == ([2], [75.0])


LOSSES = {"loss": 12.5, "class": 1.0}


def test_without_a_terminal_progress_is_plain_lines(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with TrainDisplay("tiny", 100) as display:
        for step in range(1, 101):
            clock[0] += 1.0
            display.update(Now(step, LOSSES, 1e-3, 12 * step, "1.0 GiB", "2 steps skipped"))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 7  # every 15 seconds, and the end
    expected = "loss 12.500, class 1.000, lr 0.001, expressions/s 12.0, left 1 min 25 s, memory 1.0 GiB"
    assert said[0] == f"train 15/100 {expected}, notes 2 steps skipped"
    assert "\x1b" not in "".join(said)


def test_on_a_terminal_it_is_a_live_table() -> None:
    script = (
        "from vlformer_cli.report.live import Now, TrainDisplay\n"
        "with TrainDisplay('tiny', 50) as display:\n"
        "    for step in (1, 2, 50):\n"
        "        display.update(Now(step, {'loss': 12.5}, 1e-3, 12 * step, '1.0 GiB'))\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    for word in ("tiny", "50/50", "loss", "12.500", "expressions/s", "memory", "1.0 GiB", "left", "\x1b["):
        assert word in text


def test_a_dry_run_says_what_a_run_would_be_and_writes_nothing(
    small_run: Config, tmp_path: Path, run: Any, capsys: Any
) -> None:
    config = write_config(small_run, tmp_path / "config.yaml")
    before = sorted(tmp_path.rglob("*"))
    assert run("train", "--config", config, "--output", "out", "--dry-run", "--set", "train.lr=0.25") == 0
    said = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "lr: 0.25" in said
    model = load_small(small_run)
    for part in ("backbone", "text_encoder", "pixel_decoder", "decoder"):
        count = sum(p.numel() for p in model.get_submodule(part).parameters())
        assert f"{part:<14} {count / 1e6:>7.2f} M" in said
    parameters = sum(p.numel() * 4 for p in model.parameters())
    assert f"AdamW {2 * parameters / 2**20:.0f} MiB" in said
    assert "on training data: 1 forward(s), 2 pictures" in said
    assert "expressions/s, cpu" in said


def test_a_dry_run_counts_words_first_no_further_than_the_last_step(
    small_run: Config, tmp_path: Path, run: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 steps: while words come first a step takes 10 s here, and 100 s after that."""
    times = {2: 10.0, 4: 100.0}  # by pictures
    monkeypatch.setattr(dry_run, "_seconds", lambda stepper, first, batches: times[len(batches[0].images)])
    assert small_run.data is not None
    data = replace(small_run.data, images_per_step=4, images_while_words_first=2)
    staged = replace(small_run, data=data, model=replace(small_run.model, pointer=True, mix_levels=True))
    for words_first, total in ((2, "7 min 0 s"), (6, "1 min 0 s"), (1_000, "1 min 0 s")):
        config = write_config(staged, tmp_path / "config.yaml")
        assert run("train", "--config", config, "--dry-run", "--set", f"train.words_first={words_first}") == 0
        said = capsys.readouterr().out
        assert f"all 6 steps in one such process, without evaluations: {total}" in said
        assert "a step while words come first: 10.00 s" in said


def load_small(config: Config) -> torch.nn.Module:
    from vlformer_cli.model.build import build_model

    return build_model(config.model)


def test_a_dry_run_does_without_the_data(small_run: Config, tmp_path: Path, run: Any, capsys: Any) -> None:
    assert small_run.data is not None
    missing = replace(small_run.data, train=(DataSource("refcoco-unc"),), val=None)
    config = write_config(replace(small_run, data=missing), tmp_path / "config.yaml")
    assert run("train", "--config", config, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "on made-up pictures (" in said
    assert "refcoco-unc" in said
    assert run("train", "--config", config, "--dry-run", "--set", "train.accumulate=16") == 1
    assert "data.images_per_step is 2, fewer than 1 processes x 16 forwards" in capsys.readouterr().err


def test_a_dry_run_refuses_what_training_refuses_and_fills_no_cache(
    small_run: Config, tmp_path: Path, run: Any, capsys: Any
) -> None:
    assert small_run.data is not None
    data = replace(small_run.data, cache=str(tmp_path / "cache"))
    config = write_config(replace(small_run, data=data), tmp_path / "config.yaml")
    assert run("train", "--config", config, "--dry-run") == 0
    assert "on training data" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    assert run("train", "--config", config, "--dry-run", "--set", "train.accumulate=4") == 1
    assert "vlformer: data.images_per_step is 2, fewer than 1 processes x 4 forwards" in capsys.readouterr().err


def test_names_of_files_are_not_read_as_yaml(small_run: Config, tmp_path: Path, run: Any, capsys: Any) -> None:
    config = write_config(small_run, tmp_path / "config.yaml")
    assert run("train", "--config", config, "--output", "out", "--init", "weights #2: last.safetensors") == 1
    assert "weights #2: last.safetensors" in capsys.readouterr().err


def test_rows_are_whole_or_absent(small_run: Config, tmp_path: Path) -> None:
    """A row that was cut off, as by a kill, is gone after resuming; one in the middle is an error with its place."""
    train(small_run, tmp_path / "run", max_minutes=0)
    log = tmp_path / "run/metrics.jsonl"
    log.write_text('{"step": 0, "note": 1}\n{"step": 0, "lo')
    train(small_run, tmp_path / "run", resume=True)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows[0] == {"step": 0, "note": 1}
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    log.write_text('{"step": 0, "lo\n{"step": 1}\n')
    with pytest.raises(VLFormerError, match=r"metrics\.jsonl is damaged"):
        train(small_run, tmp_path / "run", resume=True)


def test_numbers_that_are_not_finite_are_null_in_the_log(small_run: Config, tmp_path: Path) -> None:
    from vlformer_cli.engine.distributed import ALONE
    from vlformer_cli.engine.run import Run
    from vlformer_cli.engine.step import StepResult

    with Run(small_run, tmp_path / "run", ALONE, resume=False) as run:
        run.log_step(StepResult(3.0, float("nan"), 1.0, float("inf"), 2.0, 0.0, 0.0), 1.0)
    (row,) = rows_of(tmp_path / "run")
    assert (row["loss"], row["bce"], row["dice"]) == (None, None, 2.0)
    assert np.isfinite(row["gradient_norm"])
