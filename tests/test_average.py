"""scripts/average.py: the weights between two models', by hand; no average of different models."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import torch
from shared import run_script
from small_model import SMALL
from torch.testing import assert_close

from vlformer_cli.engine.checkpoint import load_weights, save_weights
from vlformer_cli.model.build import build_model

SCRIPT = Path(__file__).parent.parent / "scripts" / "average.py"


def averaged(*words: object) -> subprocess.CompletedProcess[str]:
    return run_script(SCRIPT, *words)


def test_a_quarter_of_the_second(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in ("first", "second", "average")]
    finetuned = replace(SMALL, name="finetuned", backbone=replace(SMALL.backbone, frozen=("conv_stem",)))
    calibrated = replace(SMALL, temperature=1.5, score_shift=-3.0, min_score=0.2)
    starts = [{"leak": "clean", "leak_reason": "drawn scenes"}, {"leak": "leaky", "leak_reason": "COCO", "source": "b"}]
    for number, (path, config) in enumerate(zip(paths, (calibrated, finetuned), strict=False)):
        torch.manual_seed(number)
        manifest = {"data": [{"name": f"scenes-{number}"}], "initialisation": starts[number]}
        save_weights(path, build_model(SMALL, pretrained=False), config, manifest)
    done = averaged(paths[0], paths[1], "--share", 0.25, "--output", paths[2])
    assert done.returncode == 0, done.stderr
    one, other, found = (load_weights(path) for path in paths)
    moved = 0
    for name, tensor in found.model.state_dict().items():
        mine, theirs = one.model.state_dict()[name], other.model.state_dict()[name]
        assert_close(tensor, (0.75 * mine + 0.25 * theirs).to(tensor.dtype), atol=2e-3, rtol=2e-3)  # kept in float16
        moved += bool((tensor - mine).abs().max() > 0.01) if tensor.is_floating_point() else 0
    assert moved > 20
    assert found.config == SMALL  # scores have to be calibrated anew
    parents = found.manifest["average_of"]
    assert [(p["share"], p["manifest"]["data"]) for p in parents] == [
        (0.75, [{"name": "scenes-0"}]),
        (0.25, [{"name": "scenes-1"}]),
    ]
    assert found.manifest["initialisation"] == starts[1]  # the worse of both, with its own reason
    assert found.manifest["data"] == [{"name": "scenes-0"}, {"name": "scenes-1"}]


def test_other_models_and_shares_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in ("first", "second", "average")]
    for path, config in zip(paths, (SMALL, replace(SMALL, queries=4)), strict=False):
        save_weights(path, build_model(config, pretrained=False), config, {})
    done = averaged(paths[0], paths[1], "--output", paths[2])
    assert (done.returncode, paths[2].exists()) == (1, False)
    assert "are different models: queries was 3, is 4" in done.stderr
    done = averaged(paths[0], paths[0], "--share", 1.5, "--output", paths[2])
    assert done.returncode == 1
    assert "--share is 1.5" in done.stderr
