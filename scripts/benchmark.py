"""Speed of vlformer beside transformers' Mask2Former R50, in one run: medians, each variant in turn, and their ratios.

Random weights and noise for pictures: no time depends on them. Every prediction is of expressions never seen before
and includes resizing, tokenizing and the mask at the picture's own size. Left out: loading weights; decoding a picture
and writing masks, where one is predicted (an evaluation decodes); in training what loader processes do meanwhile
(decoding, augmentation, tokenizing: `benchmarks/loading.py`). The first round is warm-up. The original VLFormer needs
0.60 of Mask2Former's time for one expression (both measured on a quiet machine of two cores; issue 5), which is how the
goals, parts of the original's times, become parts of the peer's. Groups of variants, and the peer, run in processes of
their own, each variant twice in its turn, and the second time counts.

python scripts/benchmark.py [--repeats 5] [--threads 0] [--only NAME ...] [--output benchmarks/results/FILE.md]
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from grouping import expression, make_batch, seconds_of_a_step  # noqa: E402

from vlformer_cli.config import Config, DataConfig, DataSource, load_config  # noqa: E402
from vlformer_cli.data.build import open_split  # noqa: E402
from vlformer_cli.data.rle import encode_mask  # noqa: E402
from vlformer_cli.data.store import PreparedWriter  # noqa: E402
from vlformer_cli.engine.build import build_stepper  # noqa: E402
from vlformer_cli.engine.device import keep_freed_memory, set_threads  # noqa: E402
from vlformer_cli.engine.distributed import ALONE  # noqa: E402
from vlformer_cli.engine.evaluate import evaluate  # noqa: E402
from vlformer_cli.engine.fast import for_prediction  # noqa: E402
from vlformer_cli.engine.predict import Predictor  # noqa: E402
from vlformer_cli.model.build import build_model  # noqa: E402
from vlformer_cli.types import Ref  # noqa: E402

HEIGHT, WIDTH = 480, 640
PADDED_WIDTH = 630  # read at 640 too
RANDOM = ("model.backbone.weights=none", "model.text.weights=none")
PEER, GROUPS = "peer", ("predict", "padded", "train", "eval", "tiny")
PER_IMAGE = {"train": 5, "eval": 7}  # expressions about a picture
ORIGINAL = {"1": 0.60, "8": 0.60 * 7.1 / 0.90, "train": 0.60 * 2.8 / 0.90, "eval": 0.60}
"""The original's times as parts of Mask2Former's forward: one and eight expressions, a trained and an evaluated one."""


@dataclass(frozen=True)
class Variant:
    """One thing that is timed."""

    name: str
    run: Callable[[], float]
    """Seconds of one round, already divided by expressions where the name says so."""
    goal: float | None = None
    """As a part of the peer's time, or in seconds where `is_absolute`."""
    is_absolute: bool = False


def timed(work: Callable[[], object], per: int = 1) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / per


def mask2former() -> list[Variant]:
    """One forward of Mask2Former R50 with 100 queries and 9 decoder layers, as published, without post-processing."""
    import transformers  # here alone: who predicts with vlformer does not hold it in memory

    backbone = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = transformers.Mask2FormerConfig(backbone_config=backbone)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    pixels = torch.randn(1, 3, HEIGHT, WIDTH)

    def forward() -> None:
        with torch.inference_mode():
            model(pixels)

    return [Variant("peer: Mask2Former R50, forward", lambda: timed(forward))]


def answer(variants: list[Variant]) -> None:
    """What the variants are, as a line of JSON; then for each line of stdin, a variant's number, its seconds.

    Each is run twice in its turn, and the second counts: the first finds caches that others have filled.
    """
    print(json.dumps([[v.name, v.goal, v.is_absolute] for v in variants]), flush=True)
    for line in sys.stdin:
        variant = variants[int(line)]
        variant.run()
        print(variant.run(), flush=True)


def elsewhere(group: str, threads: int) -> list[Variant]:
    """The variants of a group, run by a process of their own: nobody trains and predicts in the same one, and what one
    of them does to the memory would be felt by the others."""
    command = [sys.executable, __file__, "--group", group, "--threads", str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    ask, answers = process.stdin, process.stdout

    def answer_of() -> str:
        line = answers.readline()
        if not line:
            raise SystemExit(f"benchmark.py: the process of group {group} ended; why is above")
        return line

    def seconds_of(number: int) -> float:
        ask.write(f"{number}\n")
        ask.flush()
        return float(answer_of())

    described = json.loads(answer_of())
    return [Variant(name, partial(seconds_of, n), goal, absolute) for n, (name, goal, absolute) in enumerate(described)]


def predictions(
    config: Path, size: tuple[int, int], goals: dict[tuple[str, int], float], *, absolute: bool
) -> list[Variant]:
    """`Predictor.predict` of one and eight expressions in both precisions."""
    loaded = load_config(config).model
    torch.manual_seed(0)
    model = build_model(loaded, pretrained=False)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    variants = []
    precisions = ("fp32", "bf16")
    for precision in precisions:
        predictor = Predictor(for_prediction(model, precision), loaded, min_score=0.0)
        for count in (1, 8):

            def predict(predictor: Predictor = predictor, count: int = count) -> None:
                predictor.predict(image, [expression(rng) for _ in range(count)])

            name = f"{loaded.name}, {size[0]} px, predict {count}, {precision}"
            variants.append(Variant(name, lambda p=predict: timed(p), goals.get((precision, count)), absolute))  # type: ignore[misc]
    return variants


def padded_predictions(config: Path) -> list[Variant]:
    """The same of a picture whose width is no multiple of 32: norms, upsampling and attention leave the padding out."""
    found = predictions(config, (HEIGHT, PADDED_WIDTH), {}, absolute=False)
    return [replace(variant, name=variant.name.replace("px,", f"px, {PADDED_WIDTH} wide,")) for variant in found]


def trainings() -> list[Variant]:
    """Seconds of an optimiser step per expression, five about one picture."""
    variants = []
    for precision in ("fp32", "bf16"):
        loaded = load_config(ROOT / "configs/vlformer-r50.yaml", RANDOM)
        train = replace(loaded.train, precision=precision, device="cpu", threads=torch.get_num_threads())
        config = Config(model=loaded.model, data=DataConfig(train=()), train=train)
        stepper, _ = build_stepper(config, ALONE)
        rng = np.random.default_rng(0)
        each = PER_IMAGE["train"]

        def step(stepper=stepper, config=config, rng=rng, each=each) -> float:  # type: ignore[no-untyped-def]
            return seconds_of_a_step(stepper, 0, make_batch(1, each, config, rng)) / each

        goal = ORIGINAL["train"] / 4 if precision == "bf16" else None
        variants.append(Variant(f"vlformer-r50, train, per expression, {precision}", step, goal))
    return variants


def evaluations(folder: Path) -> list[Variant]:
    """`evaluate` over a prepared split on disk, best of Q included, per sample."""
    from PIL import Image

    rng, each = np.random.default_rng(0), PER_IMAGE["eval"]
    with PreparedWriter(folder / "noise-x", dataset="noise", split_by="x") as writer:
        (writer.folder / "images").mkdir()
        refs = []
        for number in range(2):
            name = f"{number}.jpg"
            Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(
                writer.folder / "images" / name
            )
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
            mask[100:300, 200:400] = True
            words = tuple(expression(rng) for _ in range(each))
            ids = tuple(range(number * each, number * each + each))
            box = (200.0, 100.0, 200.0, 200.0)
            refs.append(Ref(name, number, WIDTH, HEIGHT, number, (number,), "x", box, encode_mask(mask), words, ids))
        writer.write_split("val", refs)
    split = open_split(DataSource(path=str(folder / "noise-x"), split="val"))
    loaded = load_config(ROOT / "configs/vlformer-r50.yaml").model
    torch.manual_seed(0)
    model = build_model(loaded, pretrained=False)
    variants = []
    precisions = ("fp32", "bf16")
    for precision in precisions:
        predictor = Predictor(for_prediction(model, precision), loaded, min_score=0.0)

        def run(predictor: Predictor = predictor) -> None:
            evaluate(predictor, split)

        goal = ORIGINAL["eval"] / 5 if precision == "bf16" else None
        name = f"vlformer-r50, eval, per sample, {precision}"
        variants.append(Variant(name, lambda r=run: timed(r, 2 * each), goal))  # type: ignore[misc]
    return variants


def peak_memory(precision: str, threads: int) -> float:
    """GB (10**9 bytes) that a process of its own needed at most, to build, and to predict eight expressions."""
    command = [sys.executable, __file__, "--memory", precision, "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1e9


def predict_and_say_memory(precision: str) -> None:
    loaded = load_config(ROOT / "configs/vlformer-r50.yaml").model
    model = build_model(loaded, pretrained=False)
    predictor = Predictor(for_prediction(model, precision, keep=False), loaded, min_score=0.0)
    del model
    keep_freed_memory()  # as `open_engine` does
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    predictor.predict(image, [expression(rng) for _ in range(8)])
    # not getrusage's: across fork and exec that one keeps what the process that started this one had needed
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def group_of(name: str, folder: Path) -> list[Variant]:
    part = {"fp32": 1.8, "bf16": 3.5}, {"fp32": 3.0, "bf16": 6.0}
    goals = {(p, 1): ORIGINAL["1"] / part[0][p] for p in part[0]} | {
        (p, 8): ORIGINAL["8"] / part[1][p] for p in part[1]
    }
    r50, tiny = ROOT / "configs/vlformer-r50.yaml", ROOT / "configs/tiny.yaml"
    seconds = {("bf16", 1): 0.040, ("bf16", 8): 0.100, ("fp32", 1): 0.040, ("fp32", 8): 0.100}
    groups: dict[str, Callable[[], list[Variant]]] = {
        PEER: mask2former,
        "predict": lambda: predictions(r50, (HEIGHT, WIDTH), goals, absolute=False),
        "padded": lambda: padded_predictions(r50),
        "train": trainings,
        "eval": lambda: evaluations(folder),
        "tiny": lambda: predictions(tiny, (256, 256), seconds, absolute=True),
    }
    return groups[name]()


def report(variants: list[Variant], times: dict[str, list[float]]) -> list[str]:
    base = statistics.median(times[variants[0].name])
    lines = ["| what | median s | least | of the peer's | goal | met |", "|---|---|---|---|---|---|"]
    for variant in variants:
        median, least = statistics.median(times[variant.name]), min(times[variant.name])
        value = median if variant.is_absolute else median / base
        goal = "" if variant.goal is None else f"{variant.goal:.3f}" + (" s" if variant.is_absolute else "")
        met = "" if variant.goal is None else "yes" if value <= variant.goal else "no"
        lines.append(f"| {variant.name} | {median:.3f} | {least:.3f} | {median / base:.3f} | {goal} | {met} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: one per usable core")
    parser.add_argument("--only", nargs="*", default=[], choices=[*GROUPS, "memory"])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--group", help=argparse.SUPPRESS)
    args = parser.parse_args()
    set_threads(args.threads)
    if args.group and args.group != PEER:
        keep_freed_memory()
    if args.group:
        with tempfile.TemporaryDirectory() as folder:
            answer(group_of(args.group, Path(folder)))
        return
    if args.memory:
        predict_and_say_memory(args.memory)
        return
    chosen = [PEER, *(name for name in GROUPS if not args.only or name in args.only)]
    variants = [variant for name in chosen for variant in elsewhere(name, args.threads)]
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for repeat in range(args.repeats + 1):
        for variant in variants:
            seconds = variant.run()
            if repeat:  # the first round is warm-up
                times[variant.name].append(seconds)
        print(f"round {repeat} of {args.repeats} done", file=sys.stderr)
    lines = report(variants, times)
    if not args.only or "memory" in args.only:
        used = [f"{precision} {peak_memory(precision, args.threads):.2f} GB" for precision in ("fp32", "bf16")]
        lines += [
            "",
            f"Peak memory of a process that predicts 8 expressions with vlformer-r50: {', '.join(used)} (goal 1.7 GB)",
        ]
    command = f"`{shlex.join(['python', *sys.argv])}`, {date.today()}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {version('transformers')}"
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    method = f"vlformer-r50 at {HEIGHT}x{WIDTH}; medians of {args.repeats} rounds, each variant in turn"
    lines += ["", f"{command}; {machine}; {versions}; {method}"]
    print("\n".join(lines))
    if args.output:
        args.output.write_text("# Speed beside Mask2Former\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
