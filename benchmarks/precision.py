"""Float32 beside bfloat16 on this CPU: a training step and predictions, each precision in turn, medians of one run.

    python benchmarks/precision.py [--threads 2] [--repeats 5] [--config configs/tiny.yaml]

`ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` before it makes a larger CPU compute as one with AVX2 does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vlformer_cli.config import load_config
from vlformer_cli.engine.build import build_stepper
from vlformer_cli.engine.checkpoint import EMBEDDED, load_weights
from vlformer_cli.engine.distributed import ALONE
from vlformer_cli.engine.dry_run import _made_up, _time
from vlformer_cli.engine.fast import for_prediction
from vlformer_cli.engine.precision import describe_machine
from vlformer_cli.engine.predict import Predictor

RANDOM = ("model.backbone.weights=none", "model.text.weights=none", "train.device=cpu", "train.text_cache=0")


def training(config: Path, precision: str, threads: int) -> Callable[[], float]:
    """Seconds of a step of the whole model, on noise."""
    loaded = load_config(config, [*RANDOM, f"train.precision={precision}", f"train.threads={threads}"])
    stepper, _ = build_stepper(loaded, ALONE)
    batches = _made_up(loaded, loaded.train.words_first)
    return lambda: _time(stepper, loaded.train.words_first, batches)


def prediction(precision: str, count: int) -> Callable[[], float]:
    """Seconds of the embedded model for so many expressions about a picture of 480 x 640."""
    loaded = load_weights(EMBEDDED)
    predictor = Predictor(for_prediction(loaded.model, precision), loaded.config, min_score=0.0)
    image_HW3 = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    expressions = [f"the red cup {number}" for number in range(count)]

    def seconds() -> float:
        began = time.monotonic()
        predictor.predict(image_HW3, expressions)
        return time.monotonic() - began

    return seconds


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--config", type=Path, default=Path("configs/tiny.yaml"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{describe_machine(torch.device('cpu'))}, {args.threads} threads, torch {torch.__version__}\n")
    print("| what | fp32 s | bf16 s | bf16 / fp32 |\n|---|---|---|---|", flush=True)
    rows = {
        f"{args.config.stem}, a training step": lambda p: training(args.config, p, args.threads),
        "embedded model, predict 1": lambda p: prediction(p, 1),
        "embedded model, predict 8": lambda p: prediction(p, 8),
    }
    for name, make in rows.items():
        timed = [make(precision) for precision in ("fp32", "bf16")]
        rounds = [[once() for once in timed] for _ in range(args.repeats + 1)][1:]  # the first one is warm-up
        fp32, bf16 = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {name} | {fp32:.3f} | {bf16:.3f} | {bf16 / fp32:.2f} |", flush=True)


if __name__ == "__main__":
    main()
