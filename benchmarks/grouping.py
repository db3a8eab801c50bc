"""Expressions a second in training: several expressions about one picture in one forward, against one for each picture.

Both variants take optimiser steps over the same number of expressions, in turn, with random weights, noise for pictures
and expressions that were never seen before, so that nothing is remembered. The floating-point operations of both are
counted too: their ratio is what sharing can save at all.

python benchmarks/grouping.py [--config configs/vlformer-r50.yaml] [--expressions 5] [--repeats 5] [--threads 0]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlformer_cli.config import Config, DataConfig, load_config
from vlformer_cli.data.dataset import collate
from vlformer_cli.engine.build import build_stepper
from vlformer_cli.engine.device import memory_used
from vlformer_cli.engine.distributed import ALONE
from vlformer_cli.engine.step import Stepper
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.types import Batch, ImageGroup, Ref, Sample

RATIO = 4 / 3  # width to height, as of most of COCO's pictures
COLOURS = ("red", "blue", "green", "white", "black", "grey", "brown")
THINGS = ("cup", "dog", "chair", "bottle", "train", "man", "horse", "bench", "pizza", "laptop", "kite")


def make_batch(pictures: int, each: int, config: Config, rng: np.random.Generator) -> Batch:
    """Pictures of noise with `each` expressions of some ten tokens about every one."""
    height = config.model.short_side
    width = round(height * RATIO / 32) * 32
    groups = []
    for _ in range(pictures):
        masks = np.zeros((each, height, width), dtype=np.bool_)
        for mask in masks:
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            mask[top : top + height // 3, left : left + width // 3] = True
        ref = Ref("", 0, width, height, 0, (0,), "", (0, 0, 1, 1), None, (), ())
        samples = tuple(Sample(ref, expression(rng), number, "") for number in range(each))
        groups.append(ImageGroup(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), masks, samples))
    return collate(groups, config.model.max_tokens)


def expression(rng: np.random.Generator) -> str:
    """One of a million."""
    colour, thing, other = rng.choice(COLOURS), rng.choice(THINGS), rng.choice(THINGS)
    return f"the {colour} {thing} left of the {other} number {rng.integers(10_000)}"


def seconds_of_a_step(stepper: Stepper, step: int, batch: Batch) -> float:
    began = time.perf_counter()
    stepper.take(step, [batch], Counts.from_numbers(*Counts.on_host([batch])).to(stepper.device))
    return time.perf_counter() - began


def operations_of_a_step(stepper: Stepper, step: int, batch: Batch) -> int:
    """Floating-point operations of convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        seconds_of_a_step(stepper, step, batch)
    return int(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/vlformer-r50.yaml"))
    parser.add_argument("--expressions", type=int, default=5, help="of a step, and about one picture where grouped")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: one per usable core")
    args = parser.parse_args()
    loaded = load_config(args.config)
    nothing = replace(loaded.model.text, weights="none") if loaded.model.text.name != "small" else loaded.model.text
    model = replace(loaded.model, backbone=replace(loaded.model.backbone, weights="none"), text=nothing)
    train = replace(loaded.train, threads=args.threads, steps=1000, device="cpu")
    config = replace(loaded, model=model, train=train, data=loaded.data or DataConfig(train=()))
    stepper, _ = build_stepper(config, ALONE)
    rng = np.random.default_rng(0)
    variants = {"one picture, all expressions": (1, args.expressions), "a picture each": (args.expressions, 1)}
    times: dict[str, list[float]] = {name: [] for name in variants}
    operations = {}
    for repeat in range(args.repeats + 1):
        for name, (pictures, each) in variants.items():
            batch = make_batch(pictures, each, config, rng)
            if repeat:
                times[name].append(seconds_of_a_step(stepper, repeat, batch))
            else:  # the warm-up
                operations[name] = operations_of_a_step(stepper, repeat, batch)
    rates = {name: args.expressions / statistics.median(found) for name, found in times.items()}
    for name, found in times.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{name}: {statistics.median(found):.2f} s a step ({spread}), {rates[name]:.2f} expressions/s, "
              f"{operations[name] / 1e9:.0f} billion operations")  # fmt: skip
    grouped, single = rates.values()
    fewer, more = operations.values()
    print(f"grouped is {grouped / single:.2f} times as fast, with {more / fewer:.2f} times fewer operations; "
          f"medians of {args.repeats}, in turn, after one warm-up")  # fmt: skip
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{config.model.name}, {config.model.short_side} px, {args.expressions} expressions a step; {versions}, "
          f"{platform.machine()}, peak memory {memory_used(stepper.device)}")  # fmt: skip


if __name__ == "__main__":
    main()
