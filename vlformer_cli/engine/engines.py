"""Engines: what runs the network for the Predictor. `VLFormer` is one; each kind of exported file is another.

An exported file is one graph from pictures and tokens to logits, and runs whole for each chunk of expressions: up to
`AT_ONCE` expressions about a picture this costs nothing, and one file is easier to check and to hand on than two.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from vlformer_cli.config import ModelConfig
from vlformer_cli.engine.checkpoint import load_weights
from vlformer_cli.engine.device import keep_freed_memory, pick_device, usable_cores
from vlformer_cli.engine.fast import for_prediction
from vlformer_cli.engine.precision import AUTO, prediction_precision
from vlformer_cli.engine.predict import Engine
from vlformer_cli.tree import from_tree
from vlformer_cli.types import VLFormerError, VLFormerOutput, one_line

INPUTS = ("images", "pixel_valid", "tokens", "image_index")
OUTPUTS = ("class_logits", "mask_logits")
CONFIG, INT8 = "vlformer_model", "vlformer_int8"  # what the metadata of exported files holds, as JSON
PT2_METADATA = "vlformer.json"
XML_HEAD = 4096  # bytes in which a model of OpenVINO has its first element, <net ...>

Inputs = tuple[Tensor, ...]
Run = Callable[[Inputs], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LoadedEngine:
    """An engine ready for use, and where it came from."""

    engine: Engine
    config: ModelConfig
    files: tuple[Path, ...]
    """The file that was asked for, and the one that belongs to it if there is one."""
    int8: Mapping[str, Any] | None = None
    """What was measured of an int8 file when it was written."""
    precision: str | None = None
    """In which weights are computed, `fp32` or `bf16`; None: an exported file, which has its own."""

    @property
    def path(self) -> Path:
        """The file that was asked for."""
        return self.files[0]

    def describe(self) -> dict[str, str]:
        """What the results of `vlformer predict` say about the model."""
        precision = {} if self.precision is None else {"precision": self.precision}
        return {"name": self.config.name, "weights": str(self.path), **precision}


class GraphEngine:
    """A graph that does not part looking from asking: it keeps the picture, and looks again with each question."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def look(self, images_BCHW: Tensor, pixel_valid_BHW: Tensor) -> Inputs:
        """The picture itself."""
        return images_BCHW, pixel_valid_BHW

    def ask(self, seen: Inputs, token_NT: Tensor, image_index_N: Tensor) -> VLFormerOutput:
        """As `VLFormer.ask`."""
        return VLFormerOutput(*self._run((*seen, token_NT, image_index_N)))


def open_engine(path: Path, device: str = "cpu", threads: int = 0, precision: str = "fp32") -> LoadedEngine:
    """Weights or an exported file, by the ending of its name; `threads` 0: one for each usable core.

    `precision` is that of weights: `fp32`, `bf16` or `auto`; an exported file has its own.
    Raises VLFormerError if the file is not what its name says, or a package that runs it is not installed.
    """
    opener = OPENERS.get(path.suffix)
    if opener is None:
        place = pick_device(device)
        precision = prediction_precision(precision, place)
        loaded = load_weights(path, place)
        model = for_prediction(loaded.model, precision, keep=False)
        keep_freed_memory()  # not before: what loading frees is too much to keep
        return LoadedEngine(model, loaded.config, (path,), precision=precision)
    if precision not in (AUTO, "fp32"):
        raise VLFormerError(f"{path} has a precision of its own: leave --precision {precision} out")
    if device not in ("auto", "cpu"):
        raise VLFormerError(f"{path} runs on the cpu, not on {device!r}: leave --device out, or give .safetensors")
    if not path.is_file():
        raise VLFormerError(f"no file {path}: make it with `vlformer export --output {path}`")
    run, metadata = opener(path, threads or usable_cores())
    if CONFIG not in metadata:
        raise VLFormerError(f"{path} was not made by vlformer: make one with `vlformer export`")
    config = from_tree(ModelConfig, json.loads(metadata[CONFIG]), where=str(path))
    int8 = json.loads(metadata[INT8]) if INT8 in metadata else None
    files = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
    return LoadedEngine(GraphEngine(run), config, files, int8)


def open_onnx(path: Path, threads: int) -> tuple[Run, Mapping[str, str]]:
    """An ONNX file in ONNX Runtime, which by itself would take no notice of a container's or taskset's limits."""
    try:
        import onnxruntime
    except ImportError as error:
        raise VLFormerError(f"{path} needs ONNX Runtime ({error}): pip install 'vlformer[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise VLFormerError(_not_whole(path, "ONNX", error)) from error
    names = {one.name for one in session.get_inputs()}

    def run(inputs: Inputs) -> tuple[Tensor, Tensor]:
        feed = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True) if name in names}
        class_logits, mask_logits = session.run(OUTPUTS, feed)
        return torch.from_numpy(class_logits), torch.from_numpy(mask_logits)

    return run, session.get_modelmeta().custom_metadata_map


def open_torch(path: Path, threads: int) -> tuple[Run, Mapping[str, str]]:
    """A `.pt2` of torch.export. It holds a program: like any program, it is to be run only if one trusts its origin."""
    try:
        metadata = _pt2_metadata(path)
        if CONFIG not in metadata:
            return lambda _: (torch.empty(0), torch.empty(0)), metadata  # not ours: nothing of it is loaded
        torch.set_num_threads(threads)
        with path.open("rb") as file, _no_pickles():
            program = torch.export.load(file)
        # its guards refuse what was never traced and is computed right, as 32 pixels or all of CLIP's 77 tokens; before
        # torch 2.9 there were none
        unguarded = {"check_guards": False} if "check_guards" in signature(program.module).parameters else {}
        module = program.module(**unguarded)
    except Exception as error:  # whatever the parser makes of a broken file
        raise VLFormerError(_not_whole(path, ".pt2", error)) from error
    return lambda inputs: module(*inputs), metadata


def _pt2_metadata(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/archive_format") for name in archive.namelist()):
            raise VLFormerError("its end is missing")  # what was found is an archive within it
        found = [name for name in archive.namelist() if name.endswith(f"/extra/{PT2_METADATA}")]
        metadata = json.loads(archive.read(found[0])) if found else {}
    return metadata if isinstance(metadata, dict) else {}


@contextmanager
def _no_pickles() -> Iterator[None]:
    """torch.load within torch.export.load takes tensors only, and objects of Python are refused."""

    def refuse(*_: object, **__: object) -> None:
        raise VLFormerError("it holds pickled objects")

    with patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"), patch("pickle.loads", refuse):
        yield


def open_openvino(path: Path, threads: int, precision: str = "f32") -> tuple[Run, Mapping[str, str]]:
    """OpenVINO's `.xml` with the `.bin` beside it. By itself OpenVINO would compute in bfloat16 where the CPU can."""
    if b"<net" not in path.read_bytes()[:XML_HEAD]:
        raise VLFormerError(f"{path} is not a model of OpenVINO: make one with `vlformer export --format openvino`")
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise VLFormerError(f"{path} needs OpenVINO ({error}): pip install 'vlformer[openvino]'") from error
    if not path.with_suffix(".bin").is_file():
        raise VLFormerError(f"{path.with_suffix('.bin')} is missing: it belongs to {path}, copy both")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # it pins by the machine's cores and not by those that may be used
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        core = openvino.Core()
        model = core.read_model(path)
        metadata = {key: str(model.get_rt_info(key).value) for key in (CONFIG, INT8) if model.has_rt_info(key)}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise VLFormerError(_not_whole(path, "OpenVINO", error)) from error

    def run(inputs: Inputs) -> tuple[Tensor, Tensor]:
        request.infer({name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)})
        class_logits, mask_logits = (np.array(request.get_tensor(name).data) for name in OUTPUTS)
        return torch.from_numpy(class_logits), torch.from_numpy(mask_logits)

    return run, metadata


def import_openvino() -> Any:
    """OpenVINO without its telemetry, which would report over the network that it was imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _not_whole(path: Path, kind: str, error: Exception) -> str:
    return f"{path} is not a whole {kind} file ({one_line(error)[:200]}): make it again with `vlformer export`"


OPENERS: dict[str, Callable[[Path, int], tuple[Run, Mapping[str, str]]]] = {
    ".onnx": open_onnx,
    ".pt2": open_torch,
    ".xml": open_openvino,
}
