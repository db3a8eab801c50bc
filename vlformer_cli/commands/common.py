"""Options that several commands share, and how they print."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlformer_cli.report.say import say as say
from vlformer_cli.types import VLFormerError

if TYPE_CHECKING:
    from vlformer_cli.engine.checkpoint import LoadedModel
    from vlformer_cli.engine.engines import LoadedEngine

Weights = Annotated[
    Path | None, typer.Option("--weights", "-w", help="A .safetensors file. (default: the embedded model)")
]
EXPORTED = (".onnx", ".pt2", ".xml")
Runnable = Annotated[
    Path | None,
    typer.Option(
        "--weights", "-w", help="A .safetensors file, or an exported .onnx, .pt2 or .xml. (default: the embedded model)"
    ),
]
Data = Annotated[Path | None, typer.Option("--data", help="The folder of a prepared data set.")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="Or its name below the data root, e.g. refcoco.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: one per usable core.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto: bf16 on GPUs and CPUs where it is faster, else fp32. fp32: the same masks on every machine.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


def load_model(weights: Path | None, device: str, threads: int) -> LoadedModel:
    """The weights a command was asked to use, ready on the device."""
    from vlformer_cli.engine.checkpoint import EMBEDDED, load_weights
    from vlformer_cli.engine.device import pick_device, set_threads

    set_threads(threads)
    if weights and weights.suffix in EXPORTED:
        raise VLFormerError(f"{weights} is an exported file already: give the .safetensors that it was made from")
    return load_weights(weights or EMBEDDED, pick_device(device))


def load_engine(weights: Path | None, device: str, threads: int, precision: str) -> LoadedEngine:
    """The weights or the exported file that a command was asked to use, ready on the device."""
    from vlformer_cli.engine.checkpoint import EMBEDDED
    from vlformer_cli.engine.device import pick_device, set_threads
    from vlformer_cli.engine.engines import open_engine
    from vlformer_cli.engine.precision import cost_of_emulation

    set_threads(threads)
    loaded = open_engine(weights or EMBEDDED, device, threads, precision)
    if loaded.precision and (cost := cost_of_emulation(loaded.precision, pick_device(device))):
        say(f"vlformer: {cost}")
    return loaded


def print_json(document: dict[str, Any], indent: int | None = 1) -> None:
    """The one JSON document of `--json`; `indent` None: one line of `--jsonl`.

    Where stdout is not UTF-8, what it cannot hold is escaped as JSON has it.
    """
    is_utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
    print(json.dumps(document, ensure_ascii=not is_utf8, indent=indent), flush=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGINT raise KeyboardInterrupt inside, also where a script started the command in the background."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
