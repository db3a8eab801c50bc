"""Tensors by name from the weights files of others, without running any code that such a file may hold."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from vlformer_cli.types import VLFormerError, one_line

IN_FOLDER = ("model*.safetensors", "pytorch_model*.bin")
"""What transformers' `save_pretrained` writes, in one file or several."""
NESTED = ("model", "state_dict")
"""Where training scripts put the tensors within a larger checkpoint."""
NUMBERS = re.compile(r"f[248]|[iu][1248]|b1")  # numpy's codes of floats, integers, booleans


def weights_files(path: Path) -> list[Path]:
    """`path` itself, or the weights files of a folder; raises VLFormerError where there are none."""
    if path.is_file():
        return [path]
    found = [sorted(path.glob(pattern)) for pattern in IN_FOLDER]
    if not any(found):
        what = f"the folder {path} holds no {' or '.join(IN_FOLDER)}" if path.is_dir() else f"no weights at {path}"
        raise VLFormerError(f"{what}: check the path")
    return next(files for files in found if files)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Of a `.safetensors` file, detectron2's `.pkl`, torch's `.pth` (any other ending), or a folder of them.

    Raises VLFormerError for a file that is damaged, or would run code if it were loaded in the usual way.
    """
    return {name: tensor for file in weights_files(path) for name, tensor in _read(file).items()}


def _read(path: Path) -> dict[str, Tensor]:
    readers: dict[str, Callable[[Path], Any]] = {".safetensors": load_file, ".pkl": _load_pickle}
    try:
        is_torchs = zipfile.is_zipfile(path)  # whatever its ending
        found = _load_torch(path) if is_torchs else readers.get(path.suffix, _load_torch)(path)
        return _tensors(found)
    except VLFormerError as error:
        raise VLFormerError(f"{path} {error}") from error
    except OSError as error:
        raise VLFormerError(f"{path} cannot be read ({error.strerror or one_line(error)}): check the path") from error
    except Exception as error:  # damaged bytes raise nearly anything
        why = one_line(error)[:300]
        raise VLFormerError(f"{path} is damaged or not a plain weights file ({why}): fetch it again") from error


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # of pickles that are not torch's own
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text tells how to run the code all the same
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise VLFormerError(
            _runs_code(named[1]) if named else "is damaged or no weights file: fetch it again"
        ) from error


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin-1").load()


def _tensors(found: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, which may lie within a larger checkpoint."""
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise VLFormerError(f"holds a {type(found).__name__} and no weights by name: give another file")
    values = {str(name): value.tensor() if isinstance(value, _Array) else value for name, value in found.items()}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class _Dtype:
    """Stands in for `numpy.dtype`: numbers only. numpy's own would take its flags from the file, and trust them."""

    def __init__(self, code: str, *_: object) -> None:
        if not NUMBERS.fullmatch(code):
            raise VLFormerError(f"holds an array of numpy's type {code!r}, not of numbers: give another file")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands in for `numpy.ndarray`: shape, type and bytes, which must agree."""

    def __init__(self) -> None:
        self.array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, data = state
        self.fill(data, dtype, shape, "F" if column_major else "C")

    def fill(self, data: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> _Array:
        """`data` as Python 3 wrote it, or Python 2 (text, read as Latin-1)."""
        plain = data.encode("latin-1") if isinstance(data, str) else data
        self.array = np.frombuffer(plain, dtype.dtype).reshape(shape, order=order)
        return self

    def tensor(self) -> Tensor:
        """A copy that can be written to."""
        if self.array is None:
            raise VLFormerError("holds an array without content: fetch it again")
        return torch.from_numpy(np.array(self.array, self.array.dtype.newbyteorder("="), order="C"))


def _scalar(dtype: _Dtype, data: bytes | str) -> Any:
    array = _Array().fill(data, dtype, (), "C").array
    return None if array is None else array.item()


ADMITTED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": lambda data, dtype, shape, order: _Array().fill(data, dtype, shape, order),
    "_codecs.encode": lambda text, *_: text.encode("latin-1"),  # bytes as Python 3 writes them for Python 2
    "__builtin__.bytes": lambda *_: b"",  # the same, of none
}
"""All that a pickle may name, and what it gets for it."""


class _ArrayUnpickler(pickle._Unpickler):  # in Python: on damaged files the one in C may take memory without limit
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if full not in ADMITTED:
            raise VLFormerError(_runs_code(f"{module}.{name}"))
        return ADMITTED[full]


def _runs_code(name: str) -> str:
    return f"would run {name} when loaded, which no plain weights file does: do not use it"
