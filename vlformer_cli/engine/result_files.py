"""The files that `predict` writes: a mask and an overlay for each image and expression, under names that are free."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlformer_cli.data.rle import encode_mask, rle_area, rle_bbox
from vlformer_cli.engine.output import check_output_folder
from vlformer_cli.engine.predict import Segmentation
from vlformer_cli.report.overlay import draw_overlay, save_image, save_mask_png
from vlformer_cli.types import RLE, VLFormerError

SLUG_LENGTH = 40  # characters of an expression that file names repeat
NAME_BYTES = 100  # of an image's name and of an expression; file systems allow 255 in all


@dataclass(frozen=True, slots=True)
class FileResult:
    """One entry of `results` in the JSON document."""

    image: str
    width: int
    height: int
    expression: str
    score: float
    matches: bool
    """False: nothing in the image scores enough; mask and box are empty."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height in pixels."""
    area: int
    segmentation: RLE
    mask: str
    overlay: str | None
    """None where the overlay could not be written."""

    def to_json(self) -> dict[str, Any]:
        """The fields as they stand."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Notice:
    """What the user should know of an image or an expression."""

    message: str
    is_failure: bool = True


class ResultFolder:
    """Where the files go: `<image>-<expression>.mask.png` and `.overlay.png`."""

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        """`overwrite`: files of earlier calls are replaced; otherwise a number is added to names that exist.

        Raises UsageError where `folder` cannot be a folder.
        """
        self.folder, self.overwrite = folder, overwrite
        self._taken = set[str]()
        check_output_folder(folder)

    def write(
        self, image_HW3: NDArray[np.uint8], image: str, stem: str, found: Segmentation
    ) -> Iterator[FileResult | Notice]:
        """Writes both files and yields the result; a Notice for each file that could not be written."""
        try:
            mask = self._write_mask(found, f"{_cut(stem)}-{_cut(slug(found.expression))}")
        except VLFormerError as error:
            yield Notice(str(error))
            return
        overlay, notice = mask.with_name(mask.name.replace(".mask.png", ".overlay.png")), None
        caption = found.expression if found.matches else f"{found.expression}: nothing matches"
        try:
            save_image(draw_overlay(image_HW3, found.mask, caption=caption), overlay)
        except VLFormerError as error:
            notice = Notice(str(error))
        yield _result(found, image, mask, None if notice else overlay)
        if notice:
            yield notice

    def _write_mask(self, found: Segmentation, wanted: str) -> Path:
        """Another process may take a free name first, so that a name is free only once the file has it."""
        while True:
            path = self.folder / f"{self._free_name(wanted)}.mask.png"
            if save_mask_png(found.mask, path, overwrite=self.overwrite):
                return path

    def _free_name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name.casefold() in self._taken or self._exists(name):
            number += 1
            name = f"{wanted}-{number}"
        self._taken.add(name.casefold())
        return name

    def _exists(self, name: str) -> bool:
        """A folder of that name is in the way, and not an earlier result."""
        ends = (".mask.png", ".overlay.png")
        return not self.overwrite and any((self.folder / f"{name}{end}").is_file() for end in ends)


def slug(expression: str) -> str:
    """A short, safe part of a file name.

    >>> slug("Red cup, left of the bottle!"), slug("../etc"), slug("杯子")
    ('red-cup-left-of-the-bottle', 'etc', '杯子')
    """
    normal = unicodedata.normalize("NFKC", expression).lower()
    return re.sub(r"[^\w]+", "-", normal)[:SLUG_LENGTH].strip("-_") or "expression"


def _cut(name: str) -> str:
    """Also of a name that is not UTF-8, whose odd bytes Python keeps as lone surrogates."""
    return name.encode(errors="replace")[:NAME_BYTES].decode(errors="ignore").replace("?", "_")


def _result(found: Segmentation, image: str, mask: Path, overlay: Path | None) -> FileResult:
    rle = encode_mask(found.mask)
    height, width = found.mask.shape
    return FileResult(
        image=image,
        width=width,
        height=height,
        expression=found.expression,
        score=round(found.score, 6),
        matches=found.matches,
        bbox=rle_bbox(rle),
        area=rle_area(rle),
        segmentation=rle,
        mask=str(mask),
        overlay=None if overlay is None else str(overlay),
    )
