"""Deformable attention's sampling: one embedding_bag with its own backward beside grid_sample, forwards and backwards.

python benchmarks/deform_attn.py [--repeats 7] [--threads 0]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch
from torch import Tensor

from vlformer_cli.engine.device import set_threads
from vlformer_cli.model.deform_attn import LevelShapes, cell_places, sample_by_bag, sample_by_grid

CASES: dict[str, tuple[int, LevelShapes, int]] = {
    "vlformer-r50, 480x640, 1 expression, 8 heads": (1, ((60, 80), (30, 40), (15, 20)), 8),
    "vlformer-tiny, 192x192, 11 expressions, 4 heads": (11, ((24, 24), (12, 12), (6, 6)), 4),
}
STRIDES, POINTS, HEAD_DIM, SPREAD = (8, 16, 32), 4, 32, 3.0  # spread: cells by which points lie off their place


def inputs(num: int, shapes: LevelShapes, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values, points and weights, all with gradients."""
    torch.manual_seed(0)
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(num, cells, heads, HEAD_DIM)
    place = cell_places(shapes, STRIDES, value.device).repeat_interleave(POINTS, 1)[:, None]
    point = place + torch.randn(num, cells, heads, len(shapes) * POINTS, 2) * SPREAD
    weight = torch.rand(num, cells, heads, len(shapes) * POINTS)
    return value.requires_grad_(), point.requires_grad_(), weight.requires_grad_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: one per usable core")
    args = parser.parse_args()
    set_threads(args.threads)
    for case, (num, shapes, heads) in CASES.items():
        value, point, weight = inputs(num, shapes, heads)
        times: dict[tuple[str, str], list[float]] = {}
        for repeat in range(args.repeats + 1):
            for name, sample in (("grid_sample", sample_by_grid), ("embedding_bag", sample_by_bag)):
                began = time.perf_counter()
                total = sample(value, point.unbind(-1), weight, shapes)
                middle = time.perf_counter()
                total.sum().backward()
                if repeat:  # the first is warm-up
                    times.setdefault((name, "forward"), []).append(middle - began)
                    times.setdefault((name, "both"), []).append(time.perf_counter() - began)
        medians = {key: statistics.median(found) for key, found in times.items()}
        print(case)
        for part in ("forward", "both"):
            grid, bag = medians["grid_sample", part], medians["embedding_bag", part]
            print(
                f"  {part}: grid_sample {grid * 1e3:.0f} ms, embedding_bag {bag * 1e3:.0f} ms, {grid / bag:.1f} times"
            )
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    print(f"medians of {args.repeats}, in turn; {machine}")


if __name__ == "__main__":
    main()
