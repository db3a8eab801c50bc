"""Expressions a second that `vlformer train` learns from on a CPU, by how it is run; each way a process of its own.

VLFORMER_DATA=DIR python benchmarks/training.py [--config configs/tiny.yaml] [--steps 120] [--repeats 2] [--set K=V]

DIR holds the data that the config names. The ways take turns, and the first half of each run's steps, in which memory
is taken and kernels are made, does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
WAYS: dict[str, tuple[dict[str, str], list[str]]] = {
    "1,024 primitives kept (oneDNN's default)": ({CAPACITY: "1024"}, []),
    "as vlformer sets it": ({}, []),
    "16,384 primitives kept": ({CAPACITY: "16384"}, []),
    "as vlformer sets it, two processes": ({}, ["--gpus", "2"]),
}


def expressions_a_second(way: str, config: Path, steps: int, changes: list[str]) -> tuple[float, float]:
    """The median over the log's rows of the run's second half, and the most GiB of memory that a process held."""
    environment, options = WAYS[way]
    rest = {name: value for name, value in os.environ.items() if name != CAPACITY}
    settings = [f"train.steps={steps}", "train.words_first=0", "train.eval_every=0", "train.log_every=5", *changes]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vlformer_cli", "train", "--config", str(config), "--output", f"{folder}/run",
                   "--device", "cpu", *options, *(part for each in settings for part in ("--set", each))]  # fmt: skip
        done = subprocess.run(command, env=rest | environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    told = done.stdout + done.stderr
    memory = [float(part.split()[0]) for part in told.split("memory ")[1:]]
    rates = [row["expressions_per_second"] for row in rows if row["step"] > steps // 2 and "loss" in row]
    return statistics.median(rates), max(memory, default=float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/tiny.yaml"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--set", action="append", default=[], help="further changes of the config, as of vlformer train"
    )
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for turn in range(args.repeats):
        for way in WAYS:
            found[way].append(expressions_a_second(way, args.config, args.steps, args.set))
            print(f"turn {turn + 1}: {way}: {found[way][-1]}", file=sys.stderr)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"`python {' '.join(sys.argv)}`, {date.today()}; {machine}\n")
    print("| way | expressions/s, median of turns | each turn | memory of a process, GiB |\n| --- | --- | --- | --- |")
    for way, turns in found.items():
        rates = [rate for rate, _ in turns]
        each = ", ".join(f"{rate:.1f}" for rate in rates)
        print(f"| {way} | {statistics.median(rates):.1f} | {each} | {max(memory for _, memory in turns):.1f} |")


if __name__ == "__main__":
    main()
