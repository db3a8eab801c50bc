"""What several test files share: a small random model on disk and a small drawn data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import drawn, made_once
from small_model import SMALL

from vlformer_cli.app import app
from vlformer_cli.commands import errors
from vlformer_cli.config import Config, DataConfig, DataSource, LossConfig, TrainConfig
from vlformer_cli.data.scenes.generate import Recipe
from vlformer_cli.engine import run as run_module
from vlformer_cli.engine.checkpoint import load_weights, save_weights
from vlformer_cli.engine.export import Written, export_onnx, export_torch
from vlformer_cli.model.build import build_model


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.safetensors` file of a small model with random weights."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, build_model(SMALL), SMALL, {"made_by": "tests/conftest.py"})
    return path


@pytest.fixture(scope="session")
def small_onnx(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    """The small model as ONNX; writing it takes longest of all that the tests of exported files do."""

    def make(folder: Path) -> tuple[Path, Written]:
        return folder / "small.onnx", export_onnx(load_weights(small_weights), folder / "small.onnx")

    return made_once(tmp_path_factory, "small-onnx", make)


@pytest.fixture(scope="session")
def small_pt2(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    """The small model as a `.pt2`."""

    def make(folder: Path) -> tuple[Path, Written]:
        return folder / "small.pt2", export_torch(load_weights(small_weights), folder / "small.pt2")

    return made_once(tmp_path_factory, "small-pt2", make)


@pytest.fixture(scope="session")
def small_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 40 drawn scenes."""
    return drawn(tmp_path_factory, "scenes-seed7", images=40, seed=7, recipe=Recipe(size=96), workers=1)


@pytest.fixture
def real_curves() -> None:
    """For tests that look at a run's `curves.png`: see `small_run`."""


@pytest.fixture
def small_run(small_scenes: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Six steps on scenes, with all that has a state: moving average, warm-up, several groups, augmentation.

    In this process its curves are drawn for tests that ask for `real_curves` only: that takes longer than the steps.
    """
    if "real_curves" not in request.fixturenames:
        monkeypatch.setattr(run_module, "save_curves", lambda rows, path, title: path.write_bytes(b"not drawn"))
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
            save_every=2, log_every=1, threads=1, device="cpu", precision="fp32", tensorboard=False,
        ),
    )  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the app in this process, in an empty folder, and returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["vlformer", *map(str, words)])
        return errors.run(app)

    return call
