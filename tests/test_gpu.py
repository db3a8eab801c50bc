"""On a GPU: the CPU's numbers, in each precision. Skipped where there is none; docs/log.md says where they have run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_jobs import during_step, losses_of, rows_of

from vlformer_cli.config import Config
from vlformer_cli.data.images import read_image
from vlformer_cli.engine.checkpoint import EMBEDDED
from vlformer_cli.engine.engines import open_engine
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.engine.train import train
from vlformer_cli.model.deform_attn import cell_places, sample_by_bag, sample_by_grid

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """cuDNN rounds convolutions' inputs to 10 bits otherwise (TF32)."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True


def trained(config: Config, folder: Path, **settings: object) -> Path:
    train(replace(config, train=replace(config.train, **settings)), folder)
    return folder


def test_float32_gives_the_losses_and_the_evaluation_of_the_cpu(small_run: Config, tmp_path: Path) -> None:
    slow = {"lr": 1e-4, "warmup": 100, "steps": 12, "eval_every": 12}
    ours, theirs = (trained(small_run, tmp_path / device, device=device, **slow) for device in ("cuda", "cpu"))
    assert losses_of(ours) == pytest.approx(losses_of(theirs), rel=1e-4)
    assert len(losses_of(ours)) == 12
    found, expected = (rows_of(run)[-1]["val"]["chosen_query"]["miou"] for run in (ours, theirs))
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.01)])
def test_half_precision_stays_near_float32(precision: str, tolerance: float, small_run: Config, tmp_path: Path) -> None:
    slow = {"lr": 1e-4, "warmup": 100, "steps": 12, "device": "cuda", "eval_every": 12}
    half = trained(small_run, tmp_path / precision, precision=precision, **slow)
    whole = trained(small_run, tmp_path / "fp32", **slow)
    assert losses_of(half) == pytest.approx(losses_of(whole), rel=tolerance)
    assert losses_of(half) != losses_of(whole)


def test_words_first_then_all_with_loader_processes(small_run: Config, tmp_path: Path) -> None:
    data = small_run.data
    assert data is not None
    pointed = replace(
        small_run, model=replace(small_run.model, mix_levels=True, pointer=True, anchors=True, fusion_per_level=False)
    )
    loaded = replace(pointed, data=replace(data, workers=2, images_while_words_first=4))
    run = trained(loaded, tmp_path / "run", device="cuda", words_first=3, steps=8)
    rows = [row for row in rows_of(run) if "loss" in row]
    assert [row["dice"] > 0 for row in rows] == [True] * 8
    assert [row["class"] > 0 for row in rows] == [False] * 3 + [True] * 5


def test_replayed_steps_are_steps(small_run: Config, tmp_path: Path) -> None:
    model = replace(small_run.model, mix_levels=True, pointer=True, anchors=True, fusion_per_level=False)
    config = replace(small_run, model=model)
    slow = {"lr": 1e-4, "warmup": 100, "device": "cuda", "words_first": 4, "steps": 12}
    recorded, plain = (trained(config, tmp_path / f"{on}", cuda_graphs=on, **slow) for on in (True, False))
    assert losses_of(recorded) == pytest.approx(losses_of(plain), rel=1e-4)
    assert len(losses_of(plain)) == 12


def test_a_resumed_run_goes_on_as_the_uninterrupted_one(
    small_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within rounding: grid_sample's gradient is summed in no fixed order on a GPU."""
    config = replace(small_run, train=replace(small_run.train, device="cuda", lr=1e-4, warmup=100))
    train(config, tmp_path / "whole")
    during_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(config, tmp_path / "parts").step == 3
    assert train(config, tmp_path / "parts", resume=True).step == 6
    assert len(losses_of(tmp_path / "whole")) == 6
    assert losses_of(tmp_path / "parts") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-5)


def test_the_embedded_model_answers_as_on_the_cpu() -> None:
    image = read_image(EXAMPLES / "crowns.jpg")
    words = ["the mug", "the leftmost crown"]
    on_cpu, on_gpu = (
        Predictor(opened.engine, opened.config).predict(image, words)
        for opened in (open_engine(EMBEDDED, device) for device in ("cpu", "cuda"))
    )
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        assert found.score == pytest.approx(expected.score, abs=1e-3)
        assert (found.mask & expected.mask).sum() / (found.mask | expected.mask).sum() > 0.995


def test_both_ways_to_sample_agree_forwards_and_backwards() -> None:
    shapes = ((20, 30), (10, 15), (5, 8))
    torch.manual_seed(0)
    cells = sum(height * width for height, width in shapes)
    value = torch.randn(2, cells, 4, 16, device="cuda")
    place = cell_places(shapes, (8, 16, 32), value.device).repeat_interleave(4, 1)[:, None]
    point = place + torch.randn(2, cells, 4, 12, 2, device="cuda") * 3
    weight = torch.rand(2, cells, 4, 12, device="cuda")
    results = []
    for sample in (sample_by_grid, sample_by_bag):
        leaves = [tensor.clone().requires_grad_() for tensor in (value, point, weight)]
        total = sample(leaves[0], leaves[1].unbind(-1), leaves[2], shapes)
        (total * torch.linspace(-1, 1, total.numel(), device="cuda").view_as(total)).sum().backward()
        results.append([total, *(leaf.grad for leaf in leaves)])
    for grid, bag in zip(*results, strict=True):
        torch.testing.assert_close(grid, bag, rtol=1e-3, atol=1e-4)
