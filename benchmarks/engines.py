"""The engines side by side in one run: seconds of the network for a picture, and the masks' IoU with torch's.

python benchmarks/engines.py [--weights FILE] [--size 256] [--rounds 9] [--folder DIR] [--threads 1 2] [--only NAME ...]

Exports are made in `--folder` where they are not there already. Times are those of `look` and `ask` together, inputs
laid out and outputs as tensors; reading, resizing, tokenising and enlarging masks are the same for all and left out.
Torch's are the model as `vlformer predict` runs it (`for_prediction`); with several `--threads` all is timed for each.
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
from vlformer_cli.engine.fast import for_prediction
from vlformer_cli.engine.graph import example_inputs
from vlformer_cli.engine.predict import Engine, Predictor
from vlformer_cli.engine.quantize import Questions, agreement, drawn_questions

COUNTS = (1, 8)  # expressions
TOKENS = 8
BASELINE = "torch eager, float32"


def makers(loaded: LoadedModel, folder: Path, threads: int) -> dict[str, Callable[[], Engine]]:
    """By name and precision, what makes an engine, and its file where that is not there."""

    def file(name: str, make: Callable[[Path], object]) -> Path:
        if not (folder / name).exists():
            start = time.perf_counter()
            make(folder / name)
            print(f"export of {name}: {time.perf_counter() - start:.0f} s", flush=True)
        return folder / name

    def opened(name: str, make: Callable[[Path], object]) -> Engine:
        return open_engine(file(name, make), threads=threads).engine

    def questions() -> Questions:
        return drawn_questions(loaded.config)

    def openvino_bfloat16() -> Engine:
        path = file("float32.xml", lambda path: export.export_openvino(loaded, path))
        return GraphEngine(open_openvino(path, threads, "bf16")[0])

    return {
        BASELINE: lambda: for_prediction(loaded.model),
        "torch eager, bfloat16": lambda: for_prediction(loaded.model, "bf16"),
        "torch.export, float32": lambda: opened("float32.pt2", lambda path: export.export_torch(loaded, path)),
        "ONNX Runtime, float32": lambda: opened("float32.onnx", lambda path: export.export_onnx(loaded, path)),
        "ONNX Runtime, int8": lambda: opened("int8.onnx", lambda path: export.export_onnx(loaded, path, questions())),
        "OpenVINO, float32": lambda: opened("float32.xml", lambda path: export.export_openvino(loaded, path)),
        "OpenVINO, bfloat16": openvino_bfloat16,
        "OpenVINO, int8": lambda: opened("int8.xml", lambda path: export.export_openvino(loaded, path, questions())),
    }


@torch.inference_mode()
def seconds(engine: Engine, inputs: Inputs) -> float:
    """Of one picture and all expressions."""
    images, valid, tokens, index = inputs
    start = time.perf_counter()
    engine.ask(engine.look(images, valid), tokens, index)
    return time.perf_counter() - start


def report_times(engines: dict[str, Engine], inputs: Inputs, repeats: int) -> None:
    """Medians of rounds in which the engines take turns."""
    rounds = [{name: seconds(engine, inputs) for name, engine in engines.items()} for _ in range(repeats + 1)]
    medians = {name: statistics.median(one[name] for one in rounds[1:]) for name in engines}
    for name, median in medians.items():
        least, share = min(one[name] for one in rounds[1:]), median / medians[BASELINE]
        print(f"  {name:<24} {1e3 * median:7.1f} ms ({1e3 * least:.1f}) {share:5.2f}", flush=True)


def report_masks(engines: dict[str, Engine], loaded: LoadedModel) -> None:
    """The masks' IoU with those of the model as it was trained."""
    questions = drawn_questions(loaded.config)
    print(f"mask IoU with the model itself, over {questions.source}: mean, lowest")
    reference = Predictor(loaded.model, loaded.config, min_score=0.0)
    for name, engine in engines.items():
        found = agreement(reference, Predictor(engine, loaded.config, min_score=0.0), questions.halves[1])
        print(f"  {name:<24} {100 * found.miou:6.2f} % {100 * found.lowest:6.2f} %  ({found.masks} masks)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=EMBEDDED)
    parser.add_argument("--size", type=int, default=256, help="pixels of the longer side, a multiple of 32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where exported files lie or go [default: a temporary one]")
    parser.add_argument("--threads", type=int, nargs="+", default=[0], help="0: as many as there are cores")
    parser.add_argument("--only", nargs="+", help="names of engines, beside torch's own [default: all]")
    args = parser.parse_args()
    loaded = load_weights(args.weights)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnxruntime", "openvino"))
    print(f"{loaded.config.name}, {usable_cores()} core(s), {platform.machine()}, {versions}")
    height = args.size * 3 // 4 // 32 * 32
    with tempfile.TemporaryDirectory() as temporary:
        for threads in (given or usable_cores() for given in args.threads):
            set_threads(threads)
            made = makers(loaded, args.folder or Path(temporary), threads)
            chosen = [name for name in made if name == BASELINE or args.only is None or name in args.only]
            engines = {name: made[name]() for name in chosen}
            set_threads(threads)
            for count in COUNTS:
                print(f"{height}x{args.size} px, expressions: {count}, threads: {threads}; ", end="")
                print(f"median of {args.rounds} (least), share of torch eager in float32")
                report_times(engines, example_inputs(1, height, args.size, count, TOKENS), args.rounds)
        report_masks(engines, loaded)


if __name__ == "__main__":
    main()
