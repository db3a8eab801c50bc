"""What lets a training step be recorded as CUDA graphs. The recording itself needs a GPU: test_gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_model import SMALL
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from vlformer_cli.config import LossConfig, TrainConfig
from vlformer_cli.data.dataset import collate
from vlformer_cli.engine.graphed import fill, room_for, why_not
from vlformer_cli.engine.objective import Objective
from vlformer_cli.loss.build import build_criterion
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.loss.points import StepPoints
from vlformer_cli.model.build import build_model
from vlformer_cli.types import Batch, ImageGroup, Ref, Sample, VLFormerError

CPU = torch.device("cpu")
MODEL = replace(SMALL, mix_levels=True, pointer=True, anchors=True)


def a_batch(seed: int = 0) -> Batch:
    """Three pictures of two sizes with 2, 3 and 1 expressions; one of them means nothing."""
    rng = np.random.default_rng(seed)
    groups = []
    for (height, width), words in zip(
        ((96, 64), (64, 96), (96, 96)),
        (("red cup", "the dog"), ("a", "b c", "the cup left of it"), ("x",)),
        strict=True,
    ):
        ref = Ref("a.png", 0, width, height, 0, (), "cup", (0, 0, 0, 0), None, words, (0,) * len(words))
        masks = rng.random((len(words), height, width)) < 0.3
        masks[-1] &= height != width
        groups.append(
            ImageGroup(
                rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
                masks,
                tuple(Sample(ref, word, 0, "") for word in words),
                rng.random(masks.shape) < 0.1,
            )
        )
    return collate(groups, 40, draw=5)


def an_objective(device: str = "cpu") -> Objective:
    torch.manual_seed(0)
    model = build_model(MODEL, pretrained=False).train()
    criterion = build_criterion(LossConfig(points=64))
    return Objective(model=model.to(device), criterion=criterion.to(device), device_type="cpu", precision="fp32")


def losses_and_gradients(objective: Objective, batch: Batch, counts: Counts) -> tuple[Tensor, list[Tensor | None]]:
    objective.zero_grad()
    losses = objective(batch, counts)
    losses[0].backward()
    return losses.detach(), [parameter.grad for parameter in objective.parameters()]


@pytest.mark.parametrize("points_only", [False, True])
def test_rows_and_words_that_only_fill_a_batch_up_change_nothing(points_only: bool) -> None:
    batch, objective = a_batch(), an_objective()
    objective.points_only = points_only
    counts = Counts.from_numbers(*Counts.on_host([batch]))
    expected = losses_and_gradients(objective, batch, counts)
    drawn = replace(batch, places=StepPoints.draw(batch.draw, objective.point_counts()))
    room = room_for(drawn, 10, 24, CPU)
    fill(room, replace(a_batch(1), places=drawn.places))  # what was there before
    fill(room, drawn)
    assert room.tokens.shape == (10, 24)
    found = losses_and_gradients(objective, room, counts)
    assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert float(expected[0][0]) > 1


def test_a_batch_that_is_too_large_is_not_cut() -> None:
    batch = a_batch()
    with pytest.raises(VLFormerError, match="do not fit"):
        fill(room_for(batch, 5, 24, CPU), batch)


def test_points_drawn_beforehand_are_those_drawn_on_the_way() -> None:
    counts, extent = (64, 192, 16), torch.ones(2, 2)
    slots = torch.arange(2)
    on_the_way, beforehand = StepPoints(3, slots), StepPoints(3, slots, StepPoints.draw(3, counts))
    for count in counts:
        assert torch.equal(on_the_way.random(extent, count), beforehand.random(extent, count))


class NoTensorOfNumbers(TorchFunctionMode):
    """On a GPU `torch.tensor` of Python's numbers is a copy from the host."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor), "a copy from the host"
        return func(*args, **(kwargs or {}))


class NothingBetweenDevices(TorchDispatchMode):
    """No copy from one device to another, and no shape or number that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "unique", "equal")), name
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, result) if isinstance(x, Tensor) and x.dim() > 0]
        assert len({x.device.type for x in tensors}) <= 1, name
        return result


@pytest.mark.parametrize("points_only", [False, True])
def test_a_step_waits_for_nothing_and_copies_nothing(points_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recording may not hold. The meta device stands for a GPU: neither takes a CPU's shortcuts."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it does not know that device
    objective, batch = an_objective("meta"), a_batch()
    objective.points_only = points_only
    objective.model.backbone.run_at_once()
    objective.model.text_encoder.merge_repeats = False
    batch = replace(batch, places=StepPoints.draw(batch.draw, objective.point_counts())).to("meta")
    counts = Counts.from_numbers(6.0, 5.0).to(torch.device("meta"))
    with NoTensorOfNumbers(), NothingBetweenDevices():
        losses = objective(batch, counts)
        losses[0].backward()
    trained = [parameter for parameter in objective.parameters() if parameter.grad is not None]
    assert len(trained) > 100


def test_what_stands_against_recording() -> None:
    gpu, config = torch.device("cuda"), TrainConfig(cuda_graphs=True)
    assert why_not(config, gpu, 1, remembers_texts=False) is None
    assert why_not(TrainConfig(), gpu, 1, remembers_texts=False) == "train.cuda_graphs is false"
    assert why_not(config, CPU, 1, remembers_texts=False) == "the run is on cpu"
    assert why_not(config, gpu, 2, remembers_texts=False) == "not with several processes"
    assert why_not(replace(config, accumulate=2), gpu, 1, remembers_texts=False) == "not with train.accumulate"
    assert "text_cache" in str(why_not(config, gpu, 1, remembers_texts=True))
