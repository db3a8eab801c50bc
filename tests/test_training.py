"""The training loop: resuming, schedule, optimiser, moving average, and what happens when something is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_model import SMALL
from torch import nn

from vlformer_cli.config import Config, DataConfig, DataSource, LossConfig, TrainConfig
from vlformer_cli.engine import train as training
from vlformer_cli.engine.checkpoint import load_state, load_weights
from vlformer_cli.engine.optim import Schedule, average_of, build_optimizer
from vlformer_cli.loss.criterion import Losses
from vlformer_cli.model.build import build_model
from vlformer_cli.types import Batch, VLFormerError


@pytest.fixture
def config(small_scenes: Path) -> Config:
    """Six steps on scenes, with all that has a state: moving average, warm-up, several groups, augmentation."""
    return Config(
        model=SMALL,
        data=DataConfig(
            train=(DataSource(str(small_scenes)),),
            val=DataSource(str(small_scenes), split="val"),
            images_per_step=2,
            expressions_per_image=2,
            workers=0,
        ),
        loss=LossConfig(points=64),
        train=TrainConfig(
            steps=6, lr=1e-3, warmup=2, schedule="cosine", ema=0.9, clip=1.0, eval_every=3, eval_samples=4,
            save_every=2, log_every=1, threads=1, device="cpu",
        ),
    )  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """As a Ctrl-C in the middle of this step, once."""
    original = training.Run.step_on

    def step_on(run: training.Run, batch: Batch) -> Losses:
        if run.step == step:
            monkeypatch.setattr(training.Run, "step_on", original)
            raise KeyboardInterrupt
        return original(run, batch)

    monkeypatch.setattr(training.Run, "step_on", step_on)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_equals_an_uninterrupted_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    assert config.data is not None
    config = replace(config, data=replace(config.data, workers=workers))
    whole = training.train(config, tmp_path / "whole")
    interrupt_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        training.train(config, tmp_path / "parts")
    assert load_state(tmp_path / "parts/last.pt")["step"] == 4  # step 5 is taken again
    assert rows_of(tmp_path / "parts")[-1]["step"] == 5
    parts = training.train(config, tmp_path / "parts", resume=True)
    expected, found = load_file(whole), load_file(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert [row["step"] for row in rows_of(tmp_path / "whole") if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows_of(tmp_path / "whole") if "val" in row] == [3, 6]


def test_the_weights_for_use_are_the_moving_average(config: Config, tmp_path: Path) -> None:
    path = training.train(config, tmp_path / "run")
    state, loaded = load_state(tmp_path / "run/last.pt"), load_weights(path)
    for name, tensor in loaded.model.state_dict().items():
        average = state["average"][f"module.{name}"]
        torch.testing.assert_close(tensor, average.half().to(tensor.dtype), rtol=0, atol=0)
    changed = [n for n, t in state["model"].items() if not torch.equal(t, state["average"][f"module.{n}"])]
    assert any(name.startswith("decoder") for name in changed)
    assert loaded.manifest["finished"] is True
    assert loaded.manifest["config"]["train"]["steps"] == 6
    assert loaded.config == SMALL
    (data, _) = loaded.manifest["data"]
    assert data["name"] == "scenes-seed7"
    assert len(data["splits"]["train"]["sha256"]) == 64


def test_moving_average_by_hand() -> None:
    """Decay min(d, (1 + n) / (10 + n)) after n updates; the first copies the weights."""
    torch.manual_seed(0)
    model, decay = nn.Linear(3, 2), 0.3
    average = average_of(model, decay)  # type: ignore[arg-type]
    assert average is not None
    assert average_of(model, 0.0) is None  # type: ignore[arg-type]
    expected = None
    for count in range(8):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update_parameters(model)
        now = min(decay, (1 + count) / (10 + count))
        weight = model.weight.detach().double()
        expected = weight if expected is None else now * expected + (1 - now) * weight
        torch.testing.assert_close(average.module.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_schedules_by_hand() -> None:
    steps = Schedule(TrainConfig(steps=100, warmup=10, schedule="step", drop_at=(0.5, 0.8)))
    found = [steps.scale(step) for step in (0, 4, 9, 49, 50, 79, 80, 99)]
    assert found == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])
    cosine = Schedule(TrainConfig(steps=100, warmup=0, schedule="cosine", final_lr_scale=0.2))
    assert [cosine.scale(step) for step in (0, 25, 50, 100)] == pytest.approx(
        [1.0, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6, 0.2]
    )
    original = Schedule(TrainConfig())
    assert [original.scale(step) for step in (9, 69_999, 70_000, 99_999)] == pytest.approx([1, 1, 0.1, 0.1])


def test_every_trained_parameter_is_in_one_group() -> None:
    model = build_model(replace(SMALL, backbone=replace(SMALL.backbone, frozen=("conv_stem", "blocks.0"))))
    optimizer = build_optimizer(model, TrainConfig(lr=1.0, backbone_lr_scale=0.1, weight_decay=0.05))
    places = [id(p) for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(places) == len(set(places))
    assert {names[place] for place in places} == {n for n, p in model.named_parameters() if p.requires_grad}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert "backbone.net.conv_stem.weight" not in found
    assert found["backbone.net.blocks.1.0.conv_pw.weight"] == (0.1, 0.05)
    assert found["backbone.net.blocks.1.0.bn1.weight"] == (0.1, 0.0)
    assert found["decoder.blocks.0.feed_forward.expand.weight"] == (1.0, 0.05)
    for name in (
        "decoder.query_feat", "decoder.query_position", "decoder.level_embed", "pixel_decoder.level_embed",
        "decoder.blocks.0.cross_norm.weight", "decoder.blocks.0.feed_forward.expand.bias",
        "text_encoder.tower.token_embedding.table.weight", "text_encoder.tower.positional_embedding",
    ):  # fmt: skip
        assert found[name] == (1.0, 0.0), name


def test_frozen_parts_and_norm_statistics_stay_while_the_rest_moves(config: Config, tmp_path: Path) -> None:
    frozen = replace(SMALL, backbone=replace(SMALL.backbone, frozen=("conv_stem", "blocks.0")))
    run = training.Run(replace(config, model=frozen), tmp_path / "run", resume=False)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    for batch in run.batches():
        run.step_on(batch)
    after = run.model.state_dict()
    stays = ("backbone.net.conv_stem", "backbone.net.blocks.0")
    for name, tensor in after.items():
        if name.startswith(stays) or name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(tensor, before[name]), name
    moved = [name for name, _ in run.model.named_parameters() if not torch.equal(after[name], before[name])]
    assert {name.split(".")[0] for name in moved} == {"backbone", "text_encoder", "pixel_decoder", "decoder"}


def test_a_step_that_is_not_finite_changes_nothing_and_ten_end_the_run(config: Config, tmp_path: Path) -> None:
    run = training.Run(config, tmp_path / "run", resume=False)
    batch = next(run.batches())
    with torch.no_grad():
        run.model.decoder.query_feat[0, 0] = float("nan")
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    for _ in range(training.MAX_BAD_STEPS - 1):
        run.step_on(batch)
    after = run.model.state_dict()
    assert all(torch.equal(after[name].nan_to_num(7), before[name].nan_to_num(7)) for name in before)
    with pytest.raises(VLFormerError, match="not finite in 10 steps in a row"):
        run.step_on(batch)


def test_a_run_is_not_overwritten_and_not_resumed_as_another(config: Config, tmp_path: Path) -> None:
    training.train(config, tmp_path / "run")
    with pytest.raises(VLFormerError, match=r"holds a run already: add --resume"):
        training.train(config, tmp_path / "run")
    other = replace(config, train=replace(config.train, lr=2e-3))
    with pytest.raises(VLFormerError, match=r"train\.lr was 0\.001, is 0\.002"):
        training.train(other, tmp_path / "run", resume=True)
    (tmp_path / "run/last.pt").write_bytes(b"cut off")
    with pytest.raises(VLFormerError, match=r"last\.pt cannot be read"):
        training.train(config, tmp_path / "run", resume=True)


def test_resume_in_a_new_folder_starts_a_run(config: Config, tmp_path: Path) -> None:
    short = replace(config, train=replace(config.train, steps=1))
    assert training.train(short, tmp_path / "new", resume=True).is_file()


def test_weights_of_another_run_are_a_start(config: Config, small_weights: Path, tmp_path: Path) -> None:
    start = load_weights(small_weights).model.state_dict()
    run = training.Run(replace(config, init=str(small_weights)), tmp_path / "run", resume=False)
    found = run.model.state_dict()
    assert all(torch.equal(found[name], start[name]) for name in start)
    anew = replace(config, init=str(small_weights), init_except=("text_encoder", "decoder.query_feat"))
    found = training.Run(anew, tmp_path / "anew", resume=False).model.state_dict()
    changed = {name for name in found if not torch.equal(found[name], start[name])}
    assert {"text_encoder.tower.token_embedding.table.weight", "decoder.query_feat"} <= changed
    assert all(name.startswith(("text_encoder", "decoder.query_feat")) for name in changed)
    with pytest.raises(VLFormerError, match="no parameter's name begins with 'text_encodr'"):
        training.Run(replace(anew, init_except=("text_encodr",)), tmp_path / "typo", resume=False)
    wider = replace(config, init=str(small_weights), model=replace(SMALL, ffn_dim=64))
    with pytest.raises(VLFormerError, match=r"ffn_dim was 32, is 64"):
        training.Run(wider, tmp_path / "other", resume=False)


def test_weights_files_that_are_not_ours(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(VLFormerError, match="not written by vlformer"):
        load_weights(tmp_path / "foreign.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(VLFormerError, match="not a whole"):
        load_weights(tmp_path / "broken.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n(S'echo pwned'\ntR.")
    with pytest.raises(VLFormerError, match="not a whole"):
        load_weights(tmp_path / "pickle.safetensors")
