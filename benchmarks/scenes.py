"""How many drawn scenes one core makes in a second: drawn alone, and as `prepare-data scenes` writes them.

python benchmarks/scenes.py [--size 192] [--scenes 200] [--repeats 5]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from vlformer_cli.data.scenes.generate import Recipe, draw_scene, generate_scenes


def scenes_per_second(count: int, size: int, seed: int) -> float:
    """Of processor time, pictures drawn and painted but not saved."""
    start = time.process_time()
    for ordinal in range(count):
        draw_scene(np.random.default_rng([seed, ordinal]), ordinal, Recipe(size=size))
    return count / (time.process_time() - start)


def written_per_second(count: int, size: int, seed: int) -> float:
    """Of wall time, with one worker process: everything that the command does, start-up of the worker included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        generate_scenes(Path(folder) / "scenes", images=count, seed=seed, recipe=Recipe(size=size), workers=1)
        return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=192, help="pixels of the longer side")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    for what, measure in (("drawn, processor time", scenes_per_second), ("written, wall time", written_per_second)):
        rates = [measure(args.scenes, args.size, seed) for seed in range(args.repeats)]
        spread = f"median of {args.repeats}; {min(rates):.1f} to {max(rates):.1f}"
        print(f"{what}: {statistics.median(rates):.1f} scenes/s per core ({spread})")
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, OpenCV {cv2.__version__}"
    print(f"size {args.size}, {args.scenes} scenes a repeat; {versions}, {platform.machine()}")


if __name__ == "__main__":
    main()
