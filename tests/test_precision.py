"""The default precision: what machines compute natively, what a run resolves `auto` to, and what it keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_jobs import write_config

from vlformer_cli.config import Config
from vlformer_cli.engine import precision
from vlformer_cli.engine.distributed import ALONE
from vlformer_cli.engine.introduce import introduce
from vlformer_cli.engine.precision import (
    cost_of_emulation,
    fastest_native,
    is_native,
    prediction_precision,
    with_precision,
)
from vlformer_cli.engine.run import Run
from vlformer_cli.types import VLFormerError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def pretend(
    monkeypatch: pytest.MonkeyPatch, *, mkldnn: bool, avx512_bf16: bool, amx: bool, capability: str, limit: str = ""
) -> None:
    """Torch answers as on a certain CPU."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: mkldnn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)


AMX: dict[str, Any] = {"mkldnn": True, "avx512_bf16": True, "amx": True, "capability": "AVX512"}
BF16: dict[str, Any] = {**AMX, "amx": False}
AVX512: dict[str, Any] = {**BF16, "avx512_bf16": False}  # oneDNN "supports" bfloat16 here by emulating it
AVX2: dict[str, Any] = {"mkldnn": False, "avx512_bf16": False, "amx": False, "capability": "AVX2"}


@pytest.mark.parametrize(
    ("machine", "fastest", "native"),
    [
        (AMX, "bf16", True),
        ({**AMX, "limit": "avx512_core_amx"}, "bf16", True),
        ({**AMX, "limit": "AVX512_CORE_BF16"}, "fp32", True),
        ({**AMX, "limit": "AVX512_CORE"}, "fp32", False),
        ({**AMX, "limit": "AVX2"}, "fp32", False),
        ({**AMX, "capability": "AVX2"}, "fp32", False),  # ATEN_CPU_CAPABILITY=avx2
        (BF16, "fp32", True),  # measured: slower than fp32
        (AVX512, "fp32", False),
        (AVX2, "fp32", False),
    ],
)
def test_a_cpu_says_what_it_computes_natively(
    machine: dict[str, Any], fastest: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **machine)
    assert fastest_native(CPU) == prediction_precision("auto", CPU) == fastest
    assert is_native("bf16", CPU) == native
    assert is_native("fp32", CPU)
    cost = cost_of_emulation("bf16", CPU)
    assert cost is None if native else "emulates bfloat16" in str(cost)


def test_a_torch_that_does_not_know_the_questions_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, **AMX)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert fastest_native(CPU) == "fp32"


@pytest.mark.parametrize(("has_bf16", "training", "prediction"), [(True, "bf16", "bf16"), (False, "fp16", "fp32")])
def test_a_gpu_before_ampere_trains_in_float16(
    has_bf16: bool, training: str, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has_bf16)
    assert (fastest_native(GPU), prediction_precision("auto", GPU)) == (training, prediction)
    assert (cost_of_emulation("bf16", GPU) is None) == has_bf16


def test_other_devices_compute_in_float32() -> None:
    assert fastest_native(torch.device("mps")) == "fp32"


def test_processes_of_different_machines_agree_on_float32(small_run: Config) -> None:
    class Other(type(ALONE)):  # type: ignore[misc]
        def gather(self, value: Any) -> list[Any]:
            return [value, "bf16"]

    config = replace(small_run, train=replace(small_run.train, precision="auto"))
    assert with_precision(config, Other(), "bf16").train.precision == "bf16"
    assert with_precision(config, Other(), "fp16").train.precision == "fp32"


@pytest.fixture
def auto_run(small_run: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Config]:
    """A config that says `auto`, on a machine whose fastest precision is the given one."""

    def config(fastest: str) -> Config:
        monkeypatch.setattr(precision, "fastest_native", lambda device: fastest)
        return replace(small_run, train=replace(small_run.train, precision="auto"))

    return config


def test_a_run_keeps_the_precision_that_it_began_with(
    auto_run: Callable[[str], Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Run(auto_run("bf16"), tmp_path, ALONE, resume=False)
    introduce(first)
    assert "\nprecision: bf16 (auto)\n" in capsys.readouterr().err
    first.save()
    assert json.loads((tmp_path / "manifest.json").read_text())["precision"]["used"] == "bf16"
    assert "precision: bf16\n" in (tmp_path / "config.yaml").read_text()

    monkeypatch.setattr(precision, "_has_bfloat16", lambda: False)
    resumed = Run(auto_run("fp32"), tmp_path, ALONE, resume=True)
    assert resumed.config.train.precision == resumed.stepper.config.precision == "bf16"
    introduce(resumed)
    said = capsys.readouterr().err
    assert "precision: bf16, with which the run began (auto would be fp32 here)\n" in said
    assert said.count("precision: this CPU emulates bfloat16") == 1
    (again,) = json.loads((tmp_path / "manifest.json").read_text())["resumed"]
    assert again["precision"] == {"asked": "auto", "used": "bf16", "native": False}

    explicit = replace(resumed.config, train=replace(resumed.config.train, precision="fp32"))
    with pytest.raises(VLFormerError, match=r"train\.precision was 'bf16', is 'fp32'"):
        Run(explicit, tmp_path, ALONE, resume=True)


def test_a_dry_run_and_info_say_what_auto_is(
    auto_run: Callable[[str], Config], run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--config", write_config(auto_run("bf16"), Path("auto.yaml")), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "  precision: bf16\n" in said
    assert "\nprecision: bf16 (auto)\n" in said
    assert run("info") == 0
    assert "precision: auto bf16 in training, bf16 in prediction, on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("fastest", ["fp32", "bf16"])
def test_predict_says_which_precision_it_used(
    fastest: str, run: Any, small_weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "fastest_native", lambda device: fastest)
    picture = Path(__file__).parents[1] / "examples" / "crowns.jpg"
    words = ("predict", picture, "mug", "--weights", small_weights, "--device", "cpu", "--json")
    assert run(*words) == 0
    assert json.loads(capsys.readouterr().out)["model"]["precision"] == fastest
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: False)
    assert run(*words, "--precision", "bf16") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["model"]["precision"] == "bf16"
    assert said.err.count("emulates bfloat16") == 1
