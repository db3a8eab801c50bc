"""int8 variants of an exported ONNX file, and how far their masks are from float32's.

Linear layers take little harm. Convolutions do, above all the early ones, whose errors all later layers inherit: a
scheme that quantises fewer of them is tried until masks are kept. What is stated of the result was measured on
pictures that took no part in calibration or in that choice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlformer_cli.config import ModelConfig
from vlformer_cli.data.dataset import images_of, ref_image
from vlformer_cli.data.scenes.generate import Recipe, draw_scene
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.engine.engines import INPUTS, Inputs
from vlformer_cli.engine.predict import STRIDE, Engine, Predictor
from vlformer_cli.metrics import overlap
from vlformer_cli.report.say import say
from vlformer_cli.types import VLFormerError, VLFormerOutput

PICTURES = 24  # half of them to calibrate on, half to measure on
PER_PICTURE = 4  # expressions at most
SEED = 2_026_000  # of the drawn scenes; no data set of a training is drawn with it
KEPT = 0.98  # mean mask IoU with float32 from which on a scheme is taken


@dataclass(frozen=True, slots=True)
class Question:
    """A picture and expressions about it."""

    image_HW3: NDArray[np.uint8]
    expressions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Questions:
    """What a model is calibrated and compared on."""

    source: str
    asked: tuple[Question, ...]

    @property
    def halves(self) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
        """Those to calibrate on, those to measure on."""
        return self.asked[::2], self.asked[1::2]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one engine's chosen masks, at the pictures' own size, are from another's."""

    miou: float
    lowest: float
    masks: int


@dataclass(frozen=True, slots=True)
class Scheme:
    """What becomes int8."""

    name: str
    first_conv: float | None
    """Share of the convolutions, from the picture on, that stay float32; None: all do."""
    linear: str
    """`dynamic` (scaled to each input), `static` (calibrated) or `float`."""


FOR_ONNX_RUNTIME = (
    Scheme("convolutions static, linear layers dynamic", 0.0, "dynamic"),
    Scheme("later half of the convolutions static, linear layers dynamic", 0.5, "dynamic"),
    Scheme("linear layers dynamic, convolutions float32", None, "dynamic"),
)
FOR_OPENVINO = (  # whose kernels for dynamic quantisation were slower than its float32 (benchmarks/results)
    Scheme("convolutions and linear layers static", 0.0, "static"),
    Scheme("later half of the convolutions and linear layers static", 0.5, "static"),
    Scheme("later half of the convolutions static, linear layers float32", 0.5, "float"),
)


def drawn_questions(config: ModelConfig, pictures: int = PICTURES) -> Questions:
    """Drawn scenes, at the size that the model reads; the same ones each time."""
    asked: list[Question] = []
    for number in range(pictures):
        scene = draw_scene(np.random.default_rng([SEED, number]), number, Recipe(size=config.short_side))
        texts = tuple(expression.text for expression in scene.expressions[:PER_PICTURE])
        asked.append(Question(scene.picture, texts))
    return Questions(f"{pictures // 2} drawn scenes of seed {SEED}", tuple(asked))


def split_questions(split: PreparedSplit, pictures: int = PICTURES) -> Questions:
    """The first pictures of a prepared split; raises VLFormerError if it has fewer than two."""
    asked: list[Question] = []
    for samples in images_of(split):
        if len(asked) == pictures:
            break
        texts = tuple(sample.expression for sample in samples[:PER_PICTURE])
        try:
            asked.append(Question(ref_image(split, samples[0].ref), texts))
        except VLFormerError as error:
            say(f"vlformer: left out: {error}")
    if len(asked) < 2:
        raise VLFormerError(
            f"{split.name} has {len(asked)} pictures that can be read: int8 needs 2, to calibrate and to measure"
        )
    return Questions(f"{len(asked) // 2} of the first {len(asked)} pictures of {split.name}", tuple(asked))


def agreement(reference: Predictor, other: Predictor, asked: Sequence[Question]) -> Agreement:
    """Mask IoU of the queries that each of the two chooses by itself."""
    shares = [
        overlap(ours.mask, theirs.mask).iou
        for question in asked
        for ours, theirs in zip(
            other.predict(question.image_HW3, question.expressions),
            reference.predict(question.image_HW3, question.expressions),
            strict=True,
        )
    ]
    return Agreement(float(np.mean(shares)), min(shares), len(shares))


def quantise(
    source: Path,
    target: Path,
    *,
    schemes: Sequence[Scheme],
    reference: Predictor,
    open_as: Callable[[Path], Engine],
    questions: Questions,
) -> dict[str, Any]:
    """Writes the first scheme that keeps masks (the last in any case) and returns what the file's metadata is to say.

    `open_as` makes an engine of an ONNX file.
    """
    calibrating, measuring = questions.halves
    feeds = [feed for question in calibrating for feed in inputs_of(reference.config, question)]
    for scheme in schemes:
        write_int8(source, target, scheme, feeds)
        predictor = Predictor(open_as(target), reference.config, min_score=0.0)
        if scheme is schemes[-1] or agreement(reference, predictor, calibrating).miou >= KEPT:
            break
    found = agreement(reference, predictor, measuring)
    return {
        "scheme": scheme.name,
        "mask_miou": found.miou,
        "mask_iou_lowest": found.lowest,
        "masks": found.masks,
        "data": questions.source,
    }


def inputs_of(config: ModelConfig, question: Question) -> list[Inputs]:
    """What the Predictor gives to a network for a question."""
    recorder = _Recorder()
    Predictor(recorder, config, min_score=0.0).predict(question.image_HW3, question.expressions)
    return recorder.inputs


class _Recorder:
    """An engine that only notes what it is given."""

    def __init__(self) -> None:
        self.inputs: list[Inputs] = []

    def look(self, images_BCHW: Tensor, pixel_valid_BHW: Tensor) -> Inputs:
        return images_BCHW, pixel_valid_BHW

    def ask(self, seen: Inputs, token_NT: Tensor, image_index_N: Tensor) -> VLFormerOutput:
        self.inputs.append((*seen, token_NT, image_index_N))
        height, width = (side // STRIDE for side in seen[0].shape[-2:])
        count = len(token_NT)
        return VLFormerOutput(torch.zeros(count, 1, 2), torch.zeros(count, 1, height, width))


def write_int8(source: Path, target: Path, scheme: Scheme, feeds: Sequence[Inputs]) -> None:
    """An ONNX file with what `scheme` says in int8, per channel; static parts as QDQ nodes, scaled on `feeds`."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    types = ["Conv"] * (scheme.first_conv is not None) + ["MatMul", "Gemm"] * (scheme.linear == "static")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        calibrated = source
        if types:
            calibrated = Path(folder) / "static.onnx"
            _write_static(source, calibrated, types, scheme.first_conv or 0.0, feeds)
        if scheme.linear == "dynamic":
            quantize_dynamic(
                calibrated,
                target,
                ["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_without_plain_weights(onnx.load(str(calibrated), load_external_data=False).graph),
            )
        else:
            calibrated.replace(target)


def _without_plain_weights(graph: Any) -> list[str]:
    """Products with weights that are no matrix, but one for each head, or a vector: their scales come out wrong."""
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    return [
        node.name for node in graph.node if node.op_type == "MatMul" and any(ranks.get(i, 2) != 2 for i in node.input)
    ]


def _write_static(source: Path, target: Path, types: list[str], first_conv: float, feeds: Sequence[Inputs]) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[Inputs] = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            feed = next(self.feeds, None)
            return None if feed is None else {name: x.numpy() for name, x in zip(INPUTS, feed, strict=True)}

    graph = onnx.load(str(source), load_external_data=False).graph
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=types,
        nodes_to_exclude=convolutions[: round(first_conv * len(convolutions))] + _without_plain_weights(graph),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
