"""`vlformer export`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlformer_cli.commands.common import Data, Dataset, Threads, Weights, load_model, say

if TYPE_CHECKING:
    from vlformer_cli.config import ModelConfig
    from vlformer_cli.engine.export import Written
    from vlformer_cli.engine.quantize import Questions


class Format(str, Enum):
    """What `vlformer export` can write."""

    onnx = "onnx"
    torch = "torch"
    openvino = "openvino"


ENDINGS = {Format.onnx: ".onnx", Format.torch: ".pt2", Format.openvino: ".xml"}


def export(
    weights: Weights = None,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-f",
            help="onnx, torch (a .pt2 of torch.export), or openvino (an .xml and a .bin). (default: as --output ends)",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. (default: outputs/<model>.onnx, .pt2 or .xml)")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit integers where masks stay; says how far they stay. Not for torch.")
    ] = False,
    data: Data = None,
    dataset: Dataset = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="With --data or --dataset: calibrate on it. (default: val; no data set: drawn scenes)"
        ),
    ] = None,
    threads: Threads = 0,
) -> None:
    """Write the model as a graph for other runtimes, checked against torch before the file gets its name."""
    format_ = _format_of(format_, output)
    if int8 and format_ is Format.torch:
        raise typer.BadParameter("--int8 is for --format onnx and openvino")
    if not int8 and (data or dataset):
        raise typer.BadParameter("--data and --dataset are for --int8: calibration")
    if split and not (data or dataset):
        raise typer.BadParameter("--split is for --int8 with --data or --dataset: calibration")
    loaded = load_model(weights, "cpu", threads)
    path = output or Path("outputs") / f"{loaded.config.name}{'-int8' * int8}{ENDINGS[format_]}"
    questions = _questions(loaded.config, data, dataset, split or "val") if int8 else None
    from vlformer_cli.engine.export import export_onnx, export_openvino, export_torch

    if format_ is Format.torch:
        written = export_torch(loaded, path)
    else:
        written = (export_onnx if format_ is Format.onnx else export_openvino)(loaded, path, questions)
    _report(path, written)


def _format_of(given: Format | None, output: Path | None) -> Format:
    """The one that was asked for and that the file's name says, which must be the same."""
    if output is None:
        return given or Format.onnx
    named = next((format_ for format_, ending in ENDINGS.items() if output.suffix == ending), None)
    if named is None or given not in (None, named):
        endings = ", ".join(f"{ending} ({format_.value})" for format_, ending in ENDINGS.items())
        wanted = f"--format {given.value} is a {ENDINGS[given]}" if given else f"it can end in {endings}"
        raise typer.BadParameter(f"--output {output}: {wanted}")
    return named


def _questions(config: ModelConfig, data: Path | None, dataset: str | None, split: str) -> Questions:
    from vlformer_cli.data.build import find_dataset
    from vlformer_cli.data.store import PreparedSplit
    from vlformer_cli.engine.quantize import drawn_questions, split_questions

    if data is None and dataset is None:
        return drawn_questions(config)
    return split_questions(PreparedSplit(find_dataset(data, dataset), split))


def _report(path: Path, written: Written) -> None:
    from vlformer_cli.engine.quantize import KEPT

    beside = path.with_suffix(".bin")
    files = [path, beside] if path.suffix == ".xml" else [path]
    size = sum(file.stat().st_size for file in files) / 1e6
    names = " and ".join(map(str, files))
    say(f"written: {names} ({size:.1f} MB; float32 differs from torch by {written.difference:.1e} in logits at most)")
    if written.int8 is None:
        return
    found = written.int8
    say(
        f"int8 ({found['scheme']}): mask IoU with float32 {100 * found['mask_miou']:.2f} % in the mean, "
        f"{100 * found['mask_iou_lowest']:.2f} % at the lowest, over {found['masks']} masks of {found['data']}"
    )
    if found["mask_miou"] < KEPT:
        say(f"vlformer: that is less than {100 * KEPT:.0f} %: compare `vlformer eval` of both before using it")
