"""Weights for use: one `.safetensors` file, written atomically, whose metadata says what they are."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlformer_cli.config import ModelConfig
from vlformer_cli.engine.original import open_original
from vlformer_cli.model.build import build_model
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.tree import from_tree, to_tree
from vlformer_cli.types import VLFormerError, one_line

EMBEDDED = Path(__file__).parents[1] / "assets" / "vlformer-tiny.safetensors"
FORMAT = "vlformer-1"
FOREIGN = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".msgpack", ".h5", ".npz", ".tar")
"""Endings of what other programs save; `vlformer train --init` reads those of PyTorch and detectron2."""
PARTIAL = ".partial-"  # in the names of files that are being written
FULL = 2**20  # bytes left of a full disk, at most


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, and where it came from."""

    model: VLFormer
    config: ModelConfig
    manifest: dict[str, Any]
    path: Path


def find_weights(name: str) -> Path:
    """The file that `init` means: `embedded`, or a path."""
    return EMBEDDED if name == "embedded" else Path(name)


def save_weights(
    path: Path, model: VLFormer, config: ModelConfig, manifest: dict[str, Any], *, half: bool = True
) -> None:
    """One `.safetensors` file, float16 if `half`; its metadata holds the model config and the training manifest."""
    state = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    metadata = {"format": FORMAT, "model": json.dumps(to_tree(config)), "manifest": json.dumps(manifest)}
    write_atomically(path, lambda partial: save_file(state, partial, metadata=metadata))


def load_weights(path: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model in eval mode, in float32, of a vlformer weights file or of a checkpoint of the original's code.

    Raises VLFormerError if the file is neither.
    """
    if not path.is_file():
        raise VLFormerError(f"no weights at {path}: give --weights a .safetensors file that `vlformer train` wrote")
    if path.suffix.lower() in FOREIGN:
        return _load_foreign(path, device)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise VLFormerError(
            f"{path} is not a whole .safetensors file ({one_line(error)}): get or train it again"
        ) from error
    if metadata.get("format") != FORMAT:
        found = metadata.get("format")
        raise VLFormerError(f"{path} was not written by vlformer (format {found!r}): {_start_from(path)}")
    config = from_tree(ModelConfig, json.loads(metadata["model"]), where=str(path))
    model = build_model(config, pretrained=False)
    _fill(model, state, path)
    return LoadedModel(model.eval().to(device), config, json.loads(metadata["manifest"]), path)


def _load_foreign(path: Path, device: torch.device | str) -> LoadedModel:
    """A checkpoint of the original VLFormer's code; raises VLFormerError for any other."""
    try:
        found = open_original(path)
    except VLFormerError as error:
        raise VLFormerError(f"{error}; or {_start_from(path)}") from error
    if found is None:
        raise VLFormerError(f"{path} is a {path.suffix} file of another program: {_start_from(path)}")
    model, config = found
    manifest = {"source": "the original VLFormer's code", "initialisation": {"leak": "leaky"}}
    return LoadedModel(model.eval().to(device), config, manifest, path)


def _start_from(path: Path) -> str:
    return f"train from it with `vlformer train --init {path}`, which writes a .safetensors file for use"


def _fill(model: VLFormer, state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except RuntimeError as error:
        what = one_line(error)[:300]
        raise VLFormerError(f"the weights in {path} do not fit this version's model: {what}") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path`, brings it to the disk and renames it; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{PARTIAL}", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)
        partial.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter: what torch.save and safetensors make of it
        cause = "no space left" if is_full(path.parent) else one_line(error)
        raise OSError(f"{path} could not be written: {cause}") from error
    finally:
        partial.unlink(missing_ok=True)


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder has no room left."""
    return shutil.disk_usage(folder).free < FULL


def remove_partials(folder: Path) -> None:
    """What a process that was killed within `write_atomically` has left in `folder`."""
    for path in folder.glob(f".*{PARTIAL}*"):
        path.unlink(missing_ok=True)
