"""Export to ONNX, torch.export and OpenVINO; nothing gets its final name before it gave torch's numbers at other sizes.

Each format is opened again as `predict` will open it (`engine/engines.py`), and compared with torch, in a temporary
folder beside its place.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as tracing

from vlformer_cli.engine.checkpoint import LoadedModel, is_full, write_atomically
from vlformer_cli.engine.engines import (
    CONFIG,
    INPUTS,
    INT8,
    OUTPUTS,
    PT2_METADATA,
    GraphEngine,
    Inputs,
    Run,
    import_openvino,
    open_onnx,
    open_openvino,
    open_torch,
)
from vlformer_cli.engine.graph import Exported, dynamic_shapes, example_inputs
from vlformer_cli.engine.predict import Engine, Predictor
from vlformer_cli.engine.quantize import FOR_ONNX_RUNTIME, FOR_OPENVINO, Questions, Scheme, quantise
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.tree import to_tree
from vlformer_cli.types import VLFormerError, one_line

OPSET = 20
TOLERANCE = 1e-4  # of the largest logit, or of 1 where all are smaller, between runtimes that sum in different orders
CHECKS = ((2, 160, 192, 5, 7), (1, 320, 256, 1, 4), (3, 96, 96, 4, 20))
"""Images, height, width, expressions, tokens: none of them the traced ones."""
LEAST = (1, 32, 96, 2)
"""The same of a picture so low that stride 32 has one row; checked with as many tokens as the model reads at most."""


@dataclass(frozen=True, slots=True)
class Written:
    """What came of an export."""

    difference: float
    """The largest one from torch in logits, of float32, at the sizes of `CHECKS`."""
    int8: dict[str, Any] | None = None
    """What was measured of the int8 file."""


def export_onnx(loaded: LoadedModel, path: Path, questions: Questions | None = None) -> Written:
    """Writes an ONNX file, int8 if there are questions to calibrate on; VLFormerError if it is not what torch computes.

    The same holds of `export_openvino` and, without int8, of `export_torch`.
    """
    _need("onnx", "onnxscript", "onnxruntime", extra="export")

    def write(folder: Path) -> tuple[Path, Written]:
        staged, difference = _checked_onnx(loaded, folder)
        int8 = None
        if questions is not None:
            source, staged = staged, folder / "int8.onnx"
            int8 = _quantise(loaded, source, staged, FOR_ONNX_RUNTIME, _open_onnx, questions)
            _add_metadata(staged, {CONFIG: json.dumps(to_tree(loaded.config)), INT8: json.dumps(int8)})
        return staged, Written(difference, int8)

    return _write_staged(path, write)


def export_openvino(loaded: LoadedModel, path: Path, questions: Questions | None = None) -> Written:
    """Writes OpenVINO's `.xml` and the `.bin` beside it, by way of ONNX."""
    _need("onnx", "onnxscript", "onnxruntime", extra="export")
    _need("openvino", extra="openvino")
    if path.suffix != ".xml":
        raise VLFormerError(f"{path} should end in .xml: OpenVINO's weights go beside it, to the same name with .bin")

    def write(folder: Path) -> tuple[Path, Written]:
        source, difference = _checked_onnx(loaded, folder)
        staged = folder / "model.xml"
        metadata = {CONFIG: json.dumps(to_tree(loaded.config))}
        if questions is not None:
            whole, source = source, folder / "int8.onnx"
            int8 = _quantise(loaded, whole, source, FOR_OPENVINO, partial(_open_as_openvino, staged), questions)
            metadata[INT8] = json.dumps(int8)
            _convert_to_openvino(source, staged, metadata)
            written = Written(difference, int8)
        else:
            _convert_to_openvino(source, staged, metadata)
            run, _ = open_openvino(staged, torch.get_num_threads())
            written = Written(max(difference, check(loaded, run)))
        path.unlink(missing_ok=True)  # so that there is never an .xml beside another one's .bin
        write_atomically(path.with_suffix(".bin"), lambda new: staged.with_suffix(".bin").replace(new))
        return staged, written

    return _write_staged(path, write)


def export_torch(loaded: LoadedModel, path: Path) -> Written:
    """Writes a `.pt2` file of torch.export."""
    module = Exported(loaded.model)

    def write(folder: Path) -> tuple[Path, Written]:
        staged = folder / "model.pt2"
        with _quiet():
            # or the file refuses sides of 32 pixels
            with tracing.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
                program = _trace(module)
            metadata = json.dumps({CONFIG: json.dumps(to_tree(loaded.config))})
            torch.export.save(program, staged, extra_files={PT2_METADATA: metadata})
        run, _ = open_torch(staged, torch.get_num_threads())
        return staged, Written(check(loaded, run))

    return _write_staged(path, write)


def _write_staged(path: Path, write: Callable[[Path], tuple[Path, Written]]) -> Written:
    """Calls `write` with a temporary folder beside `path`; the file that it returns gets the final name."""
    written: list[Written] = []

    def stage(new: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".vlformer-export-", dir=path.parent) as folder:
            try:
                staged, result = write(Path(folder))
            except RuntimeError as error:
                if is_full(path.parent):
                    raise
                raise VLFormerError(f"this model could not be exported to {path}: {one_line(error)[:300]}") from error
            staged.replace(new)
            written.append(result)

    write_atomically(path, stage)
    return written[0]


@torch.no_grad()
def _trace(module: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(module, example_inputs(2, 128, 160, 3, 6), dynamic_shapes=dynamic_shapes())


def _checked_onnx(loaded: LoadedModel, folder: Path) -> tuple[Path, float]:
    """A float32 ONNX file in `folder`, and its largest difference from torch."""
    path = folder / "float32.onnx"
    with _quiet():  # the trace is made here: torch.onnx's own way of making it fails on ResNets with free sizes
        program = to_onnx(_trace(Exported(loaded.model)), INPUTS, OUTPUTS)
    program.model.metadata_props[CONFIG] = json.dumps(to_tree(loaded.config))
    program.save(str(path), external_data=False)
    run, _ = open_onnx(path, torch.get_num_threads())
    return path, check(loaded, run)


def to_onnx(
    traced: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]
) -> torch.onnx.ONNXProgram:
    """The program in ONNX's operators, its inputs and outputs by these names."""
    program = torch.onnx.export(
        traced,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        custom_translation_table={torch.ops.aten.sigmoid.default: _sigmoid},
        verbose=False,
    )
    assert program is not None
    return program


def _sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x) in ONNX's operators, for all values near 0 too.

    ONNX Runtime's own Sigmoid is off by up to 1.6e-7 on CPUs, whatever its value: at -17 it gives twice what it should
    and at -18 less than 0 (microsoft/onnxruntime issue 22557). `model/nearness.py` takes logarithms of sums of these.
    """
    from onnxscript import opset20 as op

    return op.Reciprocal(op.Add(op.Exp(op.Neg(x)), op.Constant(value_float=1.0)))


def _quantise(
    loaded: LoadedModel,
    source: Path,
    target: Path,
    schemes: Sequence[Scheme],
    open_as: Callable[[Path], Engine],
    questions: Questions,
) -> dict[str, Any]:
    reference = Predictor(loaded.model, loaded.config, min_score=0.0)
    with _quiet():
        return quantise(source, target, schemes=schemes, reference=reference, open_as=open_as, questions=questions)


def _open_onnx(path: Path) -> Engine:
    return GraphEngine(open_onnx(path, torch.get_num_threads())[0])


def _open_as_openvino(staged: Path, source: Path) -> Engine:
    _convert_to_openvino(source, staged, {})
    return GraphEngine(open_openvino(staged, torch.get_num_threads())[0])


def _convert_to_openvino(source: Path, target: Path, metadata: dict[str, str]) -> None:
    openvino = import_openvino()
    model = openvino.Core().read_model(source)
    for key, value in metadata.items():
        model.set_rt_info(value, key)
    openvino.serialize(model, target, target.with_suffix(".bin"))


def _add_metadata(path: Path, metadata: dict[str, str]) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {**{prop.key: prop.value for prop in model.metadata_props}, **metadata})
    onnx.save(model, str(path))


def _need(*packages: str, extra: str) -> None:
    for package in packages:
        try:
            import_openvino() if package == "openvino" else importlib.import_module(package)
        except ImportError as error:
            message = f"this export needs more packages ({error}): pip install 'vlformer[{extra}]'"
            raise VLFormerError(message) from error


def plain(model: VLFormer) -> Run:
    """The model itself, as it predicts without any export: no stand-in of an exported graph is in it."""

    @torch.no_grad()
    def run(inputs: Inputs) -> tuple[Tensor, Tensor]:
        output = model.eval()(*inputs)
        return output.class_logits, output.mask_logits

    return run


def check(loaded: LoadedModel, run: Run) -> float:
    """The largest difference in logits, at sizes and counts other than the traced ones; VLFormerError if too large."""
    reference, largest = plain(loaded.model), 0.0
    for sizes in (*CHECKS, (*LEAST, loaded.config.max_tokens)):
        inputs = example_inputs(*sizes)
        for ours, theirs in zip(reference(inputs), run(inputs), strict=True):
            difference = float((ours - theirs).abs().max())
            part = difference / max(1.0, float(ours.abs().max()))
            if not part <= TOLERANCE:
                raise VLFormerError(
                    f"the exported model differs from torch by {difference:.1e} in logits, {part:.1e} of the largest; "
                    f"{TOLERANCE:.0e} is allowed: not written"
                )
            largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk a lot; what they warn of is what `check` tests."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
