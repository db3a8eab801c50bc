"""Training steps and predictions on a GPU, and deformable attention's two ways of sampling there.

Random weights, noise for pictures and new expressions each time, as in the other benchmarks. Left out: loading,
decoding and augmentation, which other processes do.

python benchmarks/gpu.py [--repeats 10] [--only vlformer-tiny]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from deform_attn import inputs
from grouping import expression, make_batch

from vlformer_cli.config import Config, DataConfig, load_config
from vlformer_cli.engine.build import build_stepper
from vlformer_cli.engine.distributed import ALONE
from vlformer_cli.engine.fast import for_prediction
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.model.build import build_model
from vlformer_cli.model.deform_attn import sample_by_bag, sample_by_grid

WARM_UP = 3
STEPS = {"vlformer-tiny": ((4, 8), (8, 8), (16, 8)), "vlformer-r50": ((8, 5), (16, 5))}
"""Pictures of a step, and expressions about each."""
CONFIGS = {"vlformer-tiny": "configs/tiny.yaml", "vlformer-r50": "configs/vlformer-r50.yaml"}


def median_seconds(act: Callable[[], object], repeats: int) -> float:
    """Of calls after a warm-up, each waited for."""
    times = []
    for repeat in range(WARM_UP + repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        act()
        torch.cuda.synchronize()
        if repeat >= WARM_UP:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def random_config(path: str, precision: str) -> Config:
    """A config that needs no pretrained weights."""
    loaded = load_config(Path(path), ("model.backbone.weights=none", "model.text.weights=none"))
    train = replace(loaded.train, steps=1000, words_first=0, device="cuda", precision=precision)
    return replace(loaded, train=train, data=loaded.data or DataConfig(train=()))


def train_row(name: str, precision: str, pictures: int, each: int, repeats: int, *, recorded: bool) -> str:
    config = random_config(CONFIGS[name], precision)
    config = replace(config, train=replace(config.train, cuda_graphs=recorded))
    torch.cuda.reset_peak_memory_stats()
    stepper, _ = build_stepper(config, ALONE)
    batch = make_batch(pictures, each, config, np.random.default_rng(0))
    counts = Counts.from_numbers(*Counts.on_host([batch]))
    seconds = median_seconds(lambda: stepper.take(0, [batch], counts), repeats)
    memory = torch.cuda.max_memory_allocated() / 2**30
    return (
        f"{name}, {precision}, step of {pictures} x {each}{', CUDA graphs' * recorded}: {seconds * 1e3:.1f} ms, "
        f"{pictures * each / seconds:.0f} expressions/s, {memory:.1f} GiB"
    )


def predict_row(name: str, precision: str, count: int, repeats: int) -> str:
    config = random_config(CONFIGS[name], precision).model
    model = for_prediction(build_model(config, pretrained=False).eval().cuda(), precision)
    predictor, rng = Predictor(model, config), np.random.default_rng(0)
    height, width = config.short_side, round(config.short_side * 4 / 3)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    seconds = median_seconds(lambda: predictor.predict(image, [expression(rng) for _ in range(count)]), repeats)
    return f"{name}, {precision}, predict {count} at {height} x {width}: {seconds * 1e3:.1f} ms"


def sampling_row(repeats: int) -> str:
    shapes = ((60, 80), (30, 40), (15, 20))
    with torch.device("cuda"):
        value, point, weight = inputs(8, shapes, 8)
    rows = []
    for sample in (sample_by_grid, sample_by_bag):
        forward = median_seconds(lambda s=sample: s(value, point.unbind(-1), weight, shapes), repeats)
        both = median_seconds(lambda s=sample: s(value, point.unbind(-1), weight, shapes).sum().backward(), repeats)
        rows.append(f"{sample.__name__} {forward * 1e3:.1f} ms forward, {both * 1e3:.1f} with backward")
    return "sampling of 8 expressions of r50 at 480 x 640, float32: " + "; ".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", choices=list(STEPS), help="one of the two models")
    args = parser.parse_args()
    repeats = args.repeats
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; medians of {repeats}", flush=True)
    print(sampling_row(repeats), flush=True)
    for name, steps in STEPS.items():
        if args.only not in (None, name):
            continue
        records = load_config(Path(CONFIGS[name]), ()).train.cuda_graphs
        for precision in ("fp32", "bf16"):
            for count in (1, 8):
                print(predict_row(name, precision, count, repeats), flush=True)
            for pictures, each in steps:
                for recorded in sorted({False, records}):
                    print(train_row(name, precision, pictures, each, repeats, recorded=recorded), flush=True)


if __name__ == "__main__":
    main()
