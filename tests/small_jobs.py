"""Starting `vlformer train` as a user does, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from vlformer_cli.config import Config
from vlformer_cli.engine.run import Run
from vlformer_cli.engine.step import StepResult
from vlformer_cli.tree import to_tree


def write_config(config: Config, path: Path) -> Path:
    path.write_text(yaml.safe_dump(to_tree(config)))
    return path


def command(config: Path, output: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "vlformer_cli", "train", "--config", str(config), "--output", str(output), *words]


def start(config: Path, output: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(config, output, *words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str]:
    """Exit code and stderr."""
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The log, without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "expressions_per_second")} for row in rows]


def losses_of(folder: Path) -> list[float]:
    return [row["loss"] for row in rows_of(folder) if "loss" in row]


def weights_of(path: Path) -> dict[str, bytes]:
    """The bytes of each tensor; a file's metadata, which holds times, is left out."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def during_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    """Calls `act` once, before that step is taken."""
    original = Run.take

    def take(run: Run, *args: Any, **more: Any) -> StepResult:
        if run.step == step:
            monkeypatch.setattr(Run, "take", original)
            act()
        return original(run, *args, **more)

    monkeypatch.setattr(Run, "take", take)
