"""One step and what it changes: schedule, optimiser, moving average, frozen parts, losses that are not finite."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import SMALL
from torch import Tensor, nn

from vlformer_cli.config import Config, TrainConfig
from vlformer_cli.engine.checkpoint import load_weights
from vlformer_cli.engine.distributed import ALONE, World
from vlformer_cli.engine.optim import Schedule, average_of, build_optimizer
from vlformer_cli.engine.run import Run
from vlformer_cli.engine.train import train
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.model.build import build_model
from vlformer_cli.types import Batch, VLFormerError


def batches_of(run: Run) -> Iterator[tuple[tuple[Batch, ...], Counts]]:
    """What `train` hands to `Run.take`."""
    for batches in run.batches():
        yield batches, Counts.from_numbers(*Counts.on_host(batches))


def test_the_weights_for_use_are_the_moving_average(small_run: Config, tmp_path: Path) -> None:
    trained = train(small_run, tmp_path / "run")
    state = torch.load(tmp_path / "run/checkpoints/step-00000006.pt", weights_only=True)
    loaded = load_weights(trained.weights)
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


def words_first(config: Config, steps: int) -> Config:
    """The same run with a first stage of so many steps."""
    model = replace(config.model, pointer=True, anchors=True, mix_levels=True)
    return replace(config, model=model, train=replace(config.train, words_first=steps))


def test_while_words_come_first_what_is_after_the_pointer_stays(small_run: Config, tmp_path: Path) -> None:
    run = Run(words_first(small_run, 3), tmp_path / "run", ALONE, resume=False)
    later = {id(parameter) for parameter in run.model.after_pointer()}
    names = {name: id(parameter) in later for name, parameter in run.model.named_parameters()}
    assert names["decoder.query_feat"]
    assert not names["pixel_decoder.pointer.out.weight"]
    assert not names["text_encoder.proj.weight"]
    at = {0: deepcopy(run.model.state_dict())}
    for batches, counts in batches_of(run):
        result = run.take(batches, counts)
        assert (result.class_ == 0) == (run.step <= 3)
        assert result.choice >= 0
        at[run.step] = deepcopy(run.model.state_dict())
        if run.step == 4:
            assert run.average is not None  # begun anew
            torch.testing.assert_close(run.average.module.state_dict(), at[4], rtol=0, atol=0)
    for name, is_later in names.items():
        if "backbone" not in name:
            assert torch.equal(at[0][name], at[3][name]) == is_later, name
    assert all(not torch.equal(at[3][name], at[6][name]) for name in names if name.startswith("decoder.blocks.0"))
    assert all(parameter.requires_grad for parameter in run.model.after_pointer())


def test_the_schedule_begins_anew_after_the_words() -> None:
    config = TrainConfig(
        steps=110, words_first=10, words_first_lr_scale=2.0, warmup=2, schedule="cosine", final_lr_scale=0.1
    )
    scale = Schedule(config).scale
    assert [scale(0), scale(10)] == pytest.approx([2 * 0.5, 0.5])
    assert [scale(5), scale(60)] == pytest.approx([2 * 0.55, 0.55])
    dropped = Schedule(replace(config, schedule="step", drop_at=(0.5,))).scale
    assert [dropped(4), dropped(5), dropped(59), dropped(60)] == pytest.approx([2, 0.2, 1, 0.1])


def test_words_first_without_a_pointer_is_refused(small_run: Config, tmp_path: Path) -> None:
    config = replace(small_run, train=replace(small_run.train, words_first=3))
    with pytest.raises(VLFormerError, match=r"train.words_first is 3, and there is no pointer: set model.pointer"):
        Run(config, tmp_path / "run", ALONE, resume=False)
    pointing = replace(config, model=replace(config.model, pointer=True))
    with pytest.raises(
        VLFormerError, match=r"words_first is 3, and the pointer sees one level alone: set model.mix_le"
    ):
        Run(pointing, tmp_path / "run", ALONE, resume=False)


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_resumed_around_the_end_of_the_first_stage(small_run: Config, tmp_path: Path, stop: int) -> None:
    config = words_first(replace(small_run, train=replace(small_run.train, save_every=1, keep=9)), 3)
    train(config, tmp_path / "whole")
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", parts)
    for path in (parts / "checkpoints").iterdir():
        if int(path.name.split("-")[1][:8]) > stop:
            path.unlink()
    train(config, parts, resume=True)
    whole, again = (torch.load(run / "checkpoints/step-00000006.pt") for run in (tmp_path / "whole", parts))
    for part in ("model", "average"):
        torch.testing.assert_close(again[part], whole[part], rtol=0, atol=0)


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


def test_stages_without_steps_have_a_schedule() -> None:
    """A dry run asks for one step more than there are."""
    for schedule in ("cosine", "step"):
        scale = Schedule(TrainConfig(steps=6, words_first=6, warmup=0, schedule=schedule)).scale
        assert scale(6) in (1.0, pytest.approx(0.1))


def test_swin_position_biases_do_not_decay() -> None:
    """As in Swin's and Mask2Former's recipes; they are tables, with two dimensions."""
    model = build_model(replace(SMALL, backbone=replace(SMALL.backbone, name="swin_tiny_patch4_window7_224")))
    groups = build_optimizer(model, TrainConfig(weight_decay=0.05)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    tables = {name: p for name, p in model.named_parameters() if name.endswith("relative_position_bias_table")}
    assert len(tables) == 12
    assert not [name for name, p in tables.items() if id(p) in decayed]


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


def test_frozen_parts_and_norm_statistics_stay_while_the_rest_moves(small_run: Config, tmp_path: Path) -> None:
    frozen = replace(SMALL, backbone=replace(SMALL.backbone, frozen=("conv_stem", "blocks.0")))
    run = Run(replace(small_run, model=frozen), tmp_path / "run", ALONE, resume=False)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    for batches, counts in batches_of(run):
        run.take(batches, counts)
    after = run.model.state_dict()
    stays = ("backbone.net.conv_stem", "backbone.net.blocks.0")
    for name, tensor in after.items():
        if name.startswith(stays) or name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(tensor, before[name]), name
    moved = [name for name, _ in run.model.named_parameters() if not torch.equal(after[name], before[name])]
    assert {name.split(".")[0] for name in moved} == {"backbone", "text_encoder", "pixel_decoder", "decoder"}


def with_an_infinite_pixel(batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
    images = batches[0].images.float()
    images[0, 0, 5, 5] = float("inf")
    return (replace(batches[0], images=images), *batches[1:])


def test_a_batch_with_an_infinite_pixel_is_skipped_and_counted(small_run: Config, tmp_path: Path) -> None:
    run = Run(small_run, tmp_path / "run", ALONE, resume=False)
    batches, counts = next(batches_of(run))
    run.take(batches, counts)
    before = deepcopy((run.model.state_dict(), run.average.state_dict(), run.optimizer.state_dict()))  # type: ignore[union-attr]
    result = run.take(with_an_infinite_pixel(batches), counts)
    after = (run.model.state_dict(), run.average.state_dict(), run.optimizer.state_dict())  # type: ignore[union-attr]
    assert not math.isfinite(result.gradient_norm)  # the loss alone would not tell: activations are bounded
    assert (run.step, run.skipped) == (2, 1)
    assert_equal(after[0], before[0])
    assert_equal(after[1], before[1])
    assert_equal(after[2]["state"], before[2]["state"])
    assert run.take(batches, counts).is_finite


def test_float16_takes_no_step_of_a_loss_that_is_not_finite(small_run: Config, tmp_path: Path) -> None:
    """Gradients can be finite where the loss is not: of `inf - inf` for one."""
    half = replace(small_run, train=replace(small_run.train, precision="fp16"))
    run = Run(half, tmp_path / "run", ALONE, resume=False)
    run.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)  # so small that no gradient overflows
    batches, counts = next(batches_of(run))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    real = run.stepper.world
    run.stepper.world = _LossIsLost()
    result = run.take(batches, counts)
    assert not result.is_finite
    assert math.isfinite(result.gradient_norm)
    assert_equal(run.model.state_dict(), before)
    assert run.skipped == 1
    run.stepper.world = real
    assert run.take(batches, counts).is_finite
    assert any(not torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())


class _LossIsLost(World):
    def sum(self, values: Sequence[float]) -> list[float]:
        return [math.nan] * len(values)


def test_too_many_bad_steps_in_a_row_stop_the_run_and_keep_the_batch(small_run: Config, tmp_path: Path) -> None:
    few = replace(small_run, train=replace(small_run.train, max_bad_steps=3))
    run = Run(few, tmp_path / "run", ALONE, resume=False)
    batches, counts = next(batches_of(run))
    bad = with_an_infinite_pixel(batches)
    run.take(bad, counts)
    run.take(bad, counts)
    run.take(batches, counts)  # a good one in between: the count begins again
    run.take(bad, counts)
    run.take(bad, counts)
    with pytest.raises(VLFormerError, match=r"not finite in 3 steps in a row, to step 5.*bad-batch"):
        run.take(bad, counts)
    kept = torch.load(tmp_path / "run/bad-batch-0.pt", weights_only=True)
    assert kept["step"] == 5
    assert kept["forwards"][0]["images"].isinf().sum() == 1
    assert kept["forwards"][0]["expressions"] == [sample.expression for sample in bad[0].samples]


def assert_equal(found: Any, expected: Any) -> None:
    """Nested containers whose tensors are equal bit for bit."""
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    else:
        assert found == expected


def test_weights_of_another_run_are_a_start(small_run: Config, small_weights: Path, tmp_path: Path) -> None:
    start = load_weights(small_weights).model.state_dict()
    run = Run(replace(small_run, init=str(small_weights)), tmp_path / "run", ALONE, resume=False)
    found = run.model.state_dict()
    assert all(torch.equal(found[name], start[name]) for name in start)
    anew = replace(small_run, init=str(small_weights), init_except=("text_encoder", "decoder.query_feat"))
    found = Run(anew, tmp_path / "anew", ALONE, resume=False).model.state_dict()
    changed = {name for name in found if not torch.equal(found[name], start[name])}
    assert {"text_encoder.tower.token_embedding.table.weight", "decoder.query_feat"} <= changed
    assert all(name.startswith(("text_encoder", "decoder.query_feat")) for name in changed)
    with pytest.raises(VLFormerError, match="no parameter's name begins with 'text_encodr'"):
        Run(replace(anew, init_except=("text_encodr",)), tmp_path / "typo", ALONE, resume=False)
    wider = replace(small_run, init=str(small_weights), model=replace(SMALL, ffn_dim=64))
    with pytest.raises(VLFormerError, match=r"ffn_dim was 32, is 64"):
        Run(wider, tmp_path / "other", ALONE, resume=False)


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


def test_what_happens_every_0_steps_happens_at_the_end_alone(small_run: Config, tmp_path: Path) -> None:
    never = replace(small_run.train, eval_every=0, save_every=0, log_every=0, warmup=0)
    trained = train(replace(small_run, train=never), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {6}
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("*.pt")] == ["step-00000006.pt"]
    assert trained.best is not None
    assert trained.best[1] == 6
