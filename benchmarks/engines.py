"""The engines side by side in one run: seconds of the network for a picture, and the masks' IoU with torch's.

python benchmarks/engines.py [--weights FILE] [--size 256] [--rounds 9] [--folder DIR]

Exports are made in `--folder` where they are not there already. Times are those of `look` and `ask` together, inputs
laid out and outputs as tensors; reading, resizing, tokenising and enlarging masks are the same for all and left out.
Engines take turns within each round; the first round is not counted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vlformer_cli.engine import export
from vlformer_cli.engine.checkpoint import EMBEDDED, LoadedModel, load_weights
from vlformer_cli.engine.device import set_threads, usable_cores
from vlformer_cli.engine.engines import GraphEngine, Inputs, open_engine, open_openvino
from vlformer_cli.engine.graph import example_inputs
from vlformer_cli.engine.predict import Engine, Predictor
from vlformer_cli.engine.quantize import agreement, drawn_questions

COUNTS = (1, 8)  # expressions
TOKENS = 8


def exported(loaded: LoadedModel, folder: Path) -> dict[str, Path]:
    """A file for each format and precision."""
    questions = drawn_questions(loaded.config)
    makers: dict[str, Callable[[Path], object]] = {
        "float32.onnx": lambda path: export.export_onnx(loaded, path),
        "int8.onnx": lambda path: export.export_onnx(loaded, path, questions),
        "float32.pt2": lambda path: export.export_torch(loaded, path),
        "float32.xml": lambda path: export.export_openvino(loaded, path),
        "int8.xml": lambda path: export.export_openvino(loaded, path, questions),
    }
    for name, make in makers.items():
        if not (folder / name).exists():
            start = time.perf_counter()
            make(folder / name)
            print(f"export of {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return {name: folder / name for name in makers}


def all_engines(loaded: LoadedModel, folder: Path) -> dict[str, Engine]:
    """By name and precision."""
    files = exported(loaded, folder)
    threads = usable_cores()
    return {
        "torch eager, float32": loaded.model,
        "torch.export, float32": open_engine(files["float32.pt2"]).engine,
        "ONNX Runtime, float32": open_engine(files["float32.onnx"]).engine,
        "ONNX Runtime, int8": open_engine(files["int8.onnx"]).engine,
        "OpenVINO, float32": open_engine(files["float32.xml"]).engine,
        "OpenVINO, bfloat16": GraphEngine(open_openvino(files["float32.xml"], threads, "bf16")[0]),
        "OpenVINO, int8": open_engine(files["int8.xml"]).engine,
    }


@torch.inference_mode()
def seconds(engine: Engine, inputs: Inputs) -> float:
    """Of one picture and all expressions."""
    images, valid, tokens, index = inputs
    start = time.perf_counter()
    engine.ask(engine.look(images, valid), tokens, index)
    return time.perf_counter() - start


@torch.inference_mode()
def share_of_looking(loaded: LoadedModel, inputs: Inputs, rounds: int) -> float:
    """What part of torch's time goes into what a graph repeats for each chunk of expressions."""
    shares = []
    for _ in range(rounds):
        whole = seconds(loaded.model, inputs)
        start = time.perf_counter()
        loaded.model.look(*inputs[:2])
        shares.append((time.perf_counter() - start) / whole)
    return statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=EMBEDDED)
    parser.add_argument("--size", type=int, default=256, help="pixels of the longer side, a multiple of 32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where exported files lie or go [default: a temporary one]")
    args = parser.parse_args()
    set_threads(0)
    loaded = load_weights(args.weights)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnxruntime", "openvino"))
    print(f"{loaded.config.name}, {usable_cores()} core(s), {platform.machine()}, {versions}")
    with tempfile.TemporaryDirectory() as temporary:
        engines = all_engines(loaded, args.folder or Path(temporary))
        height = args.size * 3 // 4 // 32 * 32
        for count in COUNTS:
            inputs = example_inputs(1, height, args.size, count, TOKENS)
            rounds = [
                {name: seconds(engine, inputs) for name, engine in engines.items()} for _ in range(args.rounds + 1)
            ]
            print(
                f"{height}x{args.size} px, expressions: {count}; median of {args.rounds} (least), share of torch eager"
            )
            medians = {name: statistics.median(one[name] for one in rounds[1:]) for name in engines}
            for name, median in medians.items():
                least = min(one[name] for one in rounds[1:])
                share = median / medians["torch eager, float32"]
                print(f"  {name:<24} {1e3 * median:7.1f} ms ({1e3 * least:.1f}) {share:5.2f}", flush=True)
        share = share_of_looking(loaded, example_inputs(1, height, args.size, 16, TOKENS), args.rounds)
        print(f"looking is {100 * share:.0f} % of torch's time for 16 expressions")
        questions = drawn_questions(loaded.config)
        asked = questions.halves[1]
        print(f"mask IoU with torch eager, float32, over {questions.source}: mean, lowest")
        reference = Predictor(loaded.model, loaded.config, min_score=0.0)
        for name, engine in engines.items():
            found = agreement(reference, Predictor(engine, loaded.config, min_score=0.0), asked)
            print(
                f"  {name:<24} {100 * found.miou:6.2f} % {100 * found.lowest:6.2f} %  ({found.masks} masks)", flush=True
            )


if __name__ == "__main__":
    main()
