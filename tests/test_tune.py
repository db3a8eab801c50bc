"""The recipe's options: what saves time or memory changes numbers by rounding only, the others do what they say."""

from __future__ import annotations

import copy
import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_jobs import during_step, weights_of
from small_model import SMALL
from torch import Tensor, nn

from vlformer_cli.config import BackboneConfig, Config
from vlformer_cli.data.tokenize import tokenize
from vlformer_cli.engine.distributed import ALONE
from vlformer_cli.engine.objective import DTYPES
from vlformer_cli.engine.run import Run
from vlformer_cli.engine.step import StepResult
from vlformer_cli.engine.train import train
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.model import text_encoder
from vlformer_cli.model.build import build_text_encoder
from vlformer_cli.model.text_encoder import clip_hidden_states
from vlformer_cli.model.text_memory import Memory
from vlformer_cli.types import VLFormerError


def steps_of(run: Run, count: int = 3) -> Iterator[StepResult]:
    for batches, _ in zip(run.batches(), range(count), strict=False):
        yield run.take(batches, Counts.from_numbers(*Counts.on_host(batches)))


def with_train(config: Config, **changes: Any) -> Config:
    return replace(config, train=replace(config.train, **changes))


def losses(config: Config, folder: Path) -> list[float]:
    return [result.total for result in steps_of(Run(config, folder, ALONE, resume=False))]


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"channels_last": False}, 1e-4),
        ({"checkpoint_activations": True}, 1e-4),
        ({"text_cache": 0}, 1e-4),
    ],
    ids=lambda value: str(value),
)
def test_what_saves_time_or_memory_keeps_the_losses(
    small_run: Config, tmp_path: Path, changes: dict[str, Any], tolerance: float
) -> None:
    plain = losses(small_run, tmp_path / "plain")
    assert losses(with_train(small_run, **changes), tmp_path / "other") == pytest.approx(plain, rel=0, abs=tolerance)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.2), ("fp16", 0.02)])
def test_half_precision_keeps_the_first_loss_and_learns_in_float32(
    small_run: Config, tmp_path: Path, precision: str, tolerance: float
) -> None:
    plain = losses(small_run, tmp_path / "plain")
    run = Run(with_train(small_run, precision=precision), tmp_path / "half", ALONE, resume=False)
    dtypes = set()
    run.model.pixel_decoder.to_mask.smooth.register_forward_hook(lambda module, given, result: dtypes.add(result.dtype))
    found = [result.total for result in steps_of(run)]
    assert found[0] == pytest.approx(plain[0], abs=tolerance)
    assert found[0] != plain[0]
    assert dtypes == {DTYPES[precision]}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_depthwise_convolutions_alone_stay_in_float32_and_copies_have_their_own(
    small_run: Config, tmp_path: Path
) -> None:
    run = Run(with_train(small_run, precision="bf16"), tmp_path / "run", ALONE, resume=False)
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    convolutions = [m for m in run.model.backbone.net.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions:
        module.register_forward_hook(lambda m, given, result: dtypes[m.groups > 1].add(result.dtype))
    list(steps_of(run, 1))
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    depthwise = next(m for m in convolutions if m.groups > 1)
    other = copy.deepcopy(depthwise)
    nn.init.zeros_(other.weight)
    x = torch.randn(1, depthwise.in_channels, 8, 8)
    with torch.no_grad():
        assert float(other(x).abs().max()) == 0
        assert float(depthwise(x).abs().max()) > 0


@pytest.mark.filterwarnings("default")  # the compiler's own, as errors, stop it
@pytest.mark.slow  # two minutes of C++ compilation
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_parts_keep_the_losses(small_run: Config, tmp_path: Path) -> None:
    small = with_train(small_run, steps=2)
    plain = losses(small, tmp_path / "plain")
    assert losses(with_train(small, compile=True), tmp_path / "other") == pytest.approx(plain, rel=0, abs=1e-3)


def test_recomputed_activations_are_fewer_and_their_gradients_the_same(small_run: Config, tmp_path: Path) -> None:
    found = {}
    for recomputes in (False, True):
        run = Run(
            with_train(small_run, checkpoint_activations=recomputes), tmp_path / str(recomputes), ALONE, resume=False
        )
        batches = next(run.batches())
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: (kept.append(t.nbytes), t)[1], lambda t: t):
            total = run.stepper.objective(batches[0], Counts.from_numbers(*Counts.on_host(batches)))[0]
        total.backward()
        found[recomputes] = (sum(kept), {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None})
    assert found[True][0] < 0.5 * found[False][0]
    assert found[True][1].keys() == found[False][1].keys()
    for name, gradient in found[True][1].items():
        torch.testing.assert_close(gradient, found[False][1][name], rtol=1e-4, atol=1e-6)


def test_float16_gradients_that_overflow_lower_the_scale_and_change_nothing_else(
    small_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(with_train(small_run, precision="fp16"), tmp_path / "run", ALONE, resume=False)
    list(steps_of(run, 1))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    scale = run.stepper.scaler.get_scale()
    overflow = run.model.decoder.query_feat.register_hook(lambda gradient: gradient * math.inf)
    list(steps_of(run, 1))
    assert run.stepper.scaler.get_scale() == scale / 2
    assert run.skipped == 0  # it is how a scale is found
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    overflow.remove()
    list(steps_of(run, 1))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())


def test_float16_gradients_that_never_become_finite_stop_the_run(small_run: Config, tmp_path: Path) -> None:
    few = with_train(small_run, precision="fp16", max_bad_steps=2, steps=100)
    run = Run(few, tmp_path / "run", ALONE, resume=False)
    run.model.decoder.query_feat.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(VLFormerError, match="not finite in 2 steps in a row"):
        list(steps_of(run, 100))
    assert run.step < 30


def test_the_scale_of_float16_is_resumed(small_run: Config, tmp_path: Path) -> None:
    config = with_train(small_run, precision="fp16")
    whole = train(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        during_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config, tmp_path / "parts").step == 4
    state = torch.load(tmp_path / "parts/checkpoints/step-00000004.pt", weights_only=True)
    assert 1 < state["scaler"]["scale"] < 65536  # an overflow at the beginning has lowered it
    resumed = train(config, tmp_path / "parts", resume=True)
    assert weights_of(resumed.weights) == weights_of(whole.weights)


def test_frozen_parts_get_no_gradient_and_stay(small_run: Config, tmp_path: Path) -> None:
    run = Run(with_train(small_run, frozen=("backbone", "decoder.query")), tmp_path / "run", ALONE, resume=False)
    before = {name: tensor.clone() for name, tensor in run.model.named_parameters()}
    list(steps_of(run, 2))
    moved = {name for name, tensor in run.model.named_parameters() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith(("backbone", "decoder.query")) for name in moved)
    assert {name.split(".")[0] for name in moved} == {"text_encoder", "pixel_decoder", "decoder"}
    assert "decoder.level_embed" in moved


def test_frozen_says_what_is_wrong(small_run: Config, tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match="no parameter's name begins with 'bakbone'"):
        Run(with_train(small_run, frozen=("bakbone",)), tmp_path / "a", ALONE, resume=False)
    with pytest.raises(VLFormerError, match="leave nothing to train"):
        Run(with_train(small_run, frozen=("",)), tmp_path / "c", ALONE, resume=False)


def test_norms_are_synchronised_between_gpus_only(small_run: Config, tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match=r"set model\.backbone\.freeze_norm=false"):
        Run(with_train(small_run, sync_norm=True), tmp_path / "a", ALONE, resume=False)
    backbone = BackboneConfig(name="tf_efficientnet_lite0", freeze_norm=False)
    trains = replace(small_run, model=replace(small_run.model, backbone=backbone))
    with pytest.raises(VLFormerError, match="between GPUs only"):
        Run(with_train(trains, sync_norm=True), tmp_path / "b", ALONE, resume=False)


def test_a_frozen_tower_reads_each_expression_once(small_run: Config, tmp_path: Path, monkeypatch: Any) -> None:
    config = replace(small_run, model=replace(small_run.model, text=replace(small_run.model.text, frozen=True)))
    read: list[int] = []

    def counted(tower: Any, token_NT: Tensor) -> Tensor:
        read.append(len(token_NT))
        return clip_hidden_states(tower, token_NT)

    monkeypatch.setattr(text_encoder, "clip_hidden_states", counted)
    run = Run(config, tmp_path / "run", ALONE, resume=False)
    batches = next(run.batches())
    counts = Counts.from_numbers(*Counts.on_host(batches))
    run.take(batches, counts)
    assert read
    read.clear()
    run.take(batches, counts)
    assert read == []
    without = Run(with_train(config, text_cache=0), tmp_path / "without", ALONE, resume=False)
    without.take(batches, counts)
    without.take(batches, counts)
    assert sum(read) == 2 * len({sample.expression for sample in batches[0].samples})


def test_remembered_states_are_the_same_bit_for_bit_whatever_was_read_with_them() -> None:
    encoder = build_text_encoder(SMALL.text, dim=32, pretrained=False)

    def compute(token_NT: Tensor) -> Tensor:
        with torch.no_grad():
            return clip_hidden_states(encoder.tower, token_NT)

    texts = [f"the {size} {thing} on the left of the other one" [: 8 + 3 * n] for n, (size, thing) in enumerate(
        (size, thing) for size in ("big", "small", "tall") for thing in ("cup", "dog", "chair", "bottle"))]  # fmt: skip
    tokens, _ = tokenize(texts, 40)
    together = Memory(100, context=40).read(tokens, compute)
    direct = compute(tokens)
    ends = tokens.argmax(1)
    for row, end in enumerate(ends):
        alone = Memory(100, context=40).read(tokens[row : row + 1, : end + 1], compute)
        assert torch.equal(alone[0], together[row, : end + 1])
        torch.testing.assert_close(direct[row, : end + 1], together[row, : end + 1], rtol=1e-5, atol=1e-5)
        assert not together[row, end + 1 :].any()


def test_what_was_not_asked_for_lately_is_forgotten() -> None:
    asked: list[int] = []

    def compute(token_NT: Tensor) -> Tensor:
        asked.append(len(token_NT))
        return token_NT[..., None].float()

    memory = Memory(2, context=40)
    one, two, three = (tokenize([text], 40)[0] for text in ("one", "two", "three"))
    for tokens in (one, two, one, three, one):  # "two" has to go
        memory.read(tokens, compute)
    assert (len(memory), len(asked)) == (2, 3)
    memory.read(two, compute)
    assert len(asked) == 4
