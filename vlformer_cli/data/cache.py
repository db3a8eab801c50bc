"""Pictures no larger than training needs them: decoded, and kept on the disk where that is wanted."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vlformer_cli.data.images import read_at_least, refuse_other_size
from vlformer_cli.data.transforms import View

VERSION = 2  # of what `shrunk_picture` makes of a file: to be raised with every change of it


def shrunk_picture(path: Path, original: tuple[int, int], size: tuple[int, int]) -> View:
    """The picture, shrunk to `size` if it is larger; raises VLFormerError where its own size is not `original`."""
    image_HW3, step, found = read_at_least(path, size)
    refuse_other_size(path, found, original)
    return View.of_image(image_HW3, step).shrunk(size)


@dataclass(frozen=True, slots=True)
class PictureCache:
    """Keeps each shrunk picture as raw pixels in a file of its own, so that it is decoded once.

    What comes out is equal bit for bit to what `shrunk_picture` gives. A picture that changed has another name here;
    a damaged file is made again; on a full disk nothing is kept.
    """

    folder: Path

    def view(self, path: Path, original: tuple[int, int], size: tuple[int, int]) -> View:
        """As `shrunk_picture`."""
        if not path.is_file():
            return shrunk_picture(path, original, size)  # says so
        kept = self._path(path, size)
        try:
            tensors = load_file(kept)
            return View(tensors["pixels"], tensors["to_original"])
        except (OSError, SafetensorError):
            view = shrunk_picture(path, original, size)
            self._keep(view, kept)
            return view

    def _path(self, path: Path, size: tuple[int, int]) -> Path:
        state = path.stat()
        what = f"{VERSION} {path.resolve()} {state.st_size} {state.st_mtime_ns} {size[0]} {size[1]}"
        name = hashlib.sha256(what.encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def _keep(self, view: View, kept: Path) -> None:
        partial = None
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(prefix=f".{kept.name}.partial-", dir=kept.parent)
            os.close(handle)
            save_file({"pixels": np.ascontiguousarray(view.pixels), "to_original": view.to_original_23}, partial)
            Path(partial).replace(kept)
        except (OSError, SafetensorError):
            if partial is not None:
                Path(partial).unlink(missing_ok=True)
