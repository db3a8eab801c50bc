"""Which precision a training or a prediction computes in. `auto` asks the machine.

A CPU computes bfloat16 natively with AMX or avx512_bf16 (on ARM: with its bf16 extension). AMX makes it the faster one.
avx512_bf16 alone does not: a training step of vlformer-tiny took 1.1 times float32's time, one expression 1.3 times
(`benchmarks/results/precision-2026-11-29.md`). Other CPUs emulate it: a training step took 14 times as long.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from vlformer_cli.config import Config
from vlformer_cli.engine.distributed import World

AUTO = "auto"
NAMES = {"bf16": "bfloat16", "fp16": "float16"}
_BF16_LIMITS = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10", "AMX", "DEFAULT", "ALL")
"""Values of ONEDNN_MAX_CPU_ISA that leave oneDNN its bfloat16 instructions contain one of these."""
_AMX_LIMITS = ("AMX", "DEFAULT", "ALL")


def fastest_native(device: torch.device) -> str:
    """The fastest precision that the device computes natively: `fp32`, `bf16` or `fp16`."""
    if device.type == "cuda":
        return "bf16" if is_native("bf16", device) else "fp16"
    if device.type == "cpu" and _has_amx():
        return "bf16"
    return "fp32"


def prediction_precision(asked: str, device: torch.device) -> str:
    """`asked`, or in place of `auto` bf16 where that is the fastest native precision, else fp32."""
    if asked != AUTO:
        return asked
    return "bf16" if fastest_native(device) == "bf16" else "fp32"


def is_native(precision: str, device: torch.device) -> bool:
    """Whether the device has instructions for the precision. Without them it converts each number, which is slow."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return _has_bfloat16() if precision == "bf16" else _has_float16()
    return True  # of other devices nothing is known, and nothing is said


def cost_of_emulation(precision: str, device: torch.device) -> str | None:
    """One line about a precision that the device emulates; None where it is native."""
    if is_native(precision, device):
        return None
    name = NAMES[precision]
    if device.type == "cuda":
        return f"precision: this GPU emulates {name} ({precision}); fp16 and fp32 are faster, auto chooses"
    return (
        f"precision: this CPU emulates {name} ({precision}): training takes ten times as long as in fp32 "
        "or more, prediction three times; auto or fp32 avoids that"
    )


def kept_precision(tree: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A config's tree in which `auto` means the precision that a run began with (`before`, its config's tree)."""
    if tree["train"]["precision"] != AUTO:
        return tree
    return {**tree, "train": {**tree["train"], "precision": before["train"]["precision"]}}


def with_precision(config: Config, world: World, began_with: str | None = None) -> Config:
    """The config with a precision in place of `auto`: that of the run's beginning, or the fastest native one.

    Processes whose machines differ agree on fp32, which all compute natively.
    """
    precision = config.train.precision
    if precision == AUTO:
        found = set(world.gather(began_with or fastest_native(world.device(config.train.device))))
        precision = found.pop() if len(found) == 1 else "fp32"  # type: ignore[assignment]
    return replace(config, train=replace(config.train, precision=precision))


def describe_precision(asked: str, used: str, device: torch.device) -> list[str]:
    """What a run says about its precision when it begins: a line, and another where it is emulated."""
    line = f"precision: {used}"
    if asked == AUTO:
        native = fastest_native(device)
        line += " (auto)" if used == native else f", with which the run began (auto would be {native} here)"
    cost = cost_of_emulation(used, device)
    return [line] if cost is None else [line, cost]


def describe_machine(device: torch.device) -> dict[str, str]:
    """What `auto` means on this device, and what the CPU offers."""
    cpu = torch.device("cpu")
    bfloat16 = "native" if is_native("bf16", cpu) else "emulated"
    return {
        "auto": f"{fastest_native(device)} in training, {prediction_precision(AUTO, device)} in prediction",
        "on": device.type,
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, bf16 {bfloat16}{' with AMX' if _has_amx() else ''}",
    }


def _has_bfloat16() -> bool:
    if not _asked(lambda: torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    instructions = _asked(lambda: torch.cpu._is_avx512_bf16_supported()) or _asked(
        lambda: torch.cpu._is_amx_tile_supported()
    )
    return instructions and _uses_avx512() and _onednn_may_use(_BF16_LIMITS)


def _has_amx() -> bool:
    return _has_bfloat16() and _asked(lambda: torch.cpu._is_amx_tile_supported()) and _onednn_may_use(_AMX_LIMITS)


def _has_float16() -> bool:
    return _uses_avx512() and _asked(lambda: torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _uses_avx512() -> bool:
    """Whether torch's own kernels use it; ATEN_CPU_CAPABILITY can forbid it."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _onednn_may_use(allowed: tuple[str, ...]) -> bool:
    """Whether ONEDNN_MAX_CPU_ISA (DNNL_MAX_CPU_ISA, its old name) permits these instructions."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    return any(name in limit.upper() for name in allowed)


def _asked(question: Callable[[], object]) -> bool:
    """The answer of torch; False where this version does not know the question, as some are not public."""
    try:
        return bool(question())
    except (AttributeError, RuntimeError):
        return False
