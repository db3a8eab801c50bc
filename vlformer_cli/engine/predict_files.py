"""From picture files and expressions to mask and overlay files; what fails is noted and the rest is done."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlformer_cli.data.images import read_image
from vlformer_cli.data.rle import encode_mask, rle_area, rle_bbox
from vlformer_cli.engine.predict import Predictor, Segmentation
from vlformer_cli.report.overlay import draw_overlay, save_image, save_mask_png
from vlformer_cli.types import RLE, VLFormerError

SLUG_LENGTH = 40  # characters of an expression that file names repeat
NAME_BYTES = 100  # of a picture's name and of an expression; file systems allow 255 in all


@dataclass(frozen=True, slots=True)
class FileResult:
    """One entry of `results` in the JSON document."""

    image: str
    width: int
    height: int
    expression: str
    score: float
    matches: bool
    """False: nothing in the picture scores enough; mask and box are empty."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height in pixels."""
    area: int
    segmentation: RLE
    mask: str
    overlay: str

    def to_json(self) -> dict[str, Any]:
        """The fields as they stand."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class FilesDone:
    """What came of it all."""

    results: list[FileResult] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def predict_files(predictor: Predictor, images: Sequence[Path], expressions: Sequence[str], output: Path) -> FilesDone:
    """Writes `<picture>-<expression>.mask.png` and `.overlay.png` below `output` for each pair."""
    done = FilesDone()
    asked = [expression for expression in expressions if expression.strip()]
    if len(asked) < len(expressions):
        done.failures.append('an expression is empty: say what to find, for example "red cup"')
    taken, cut = set[str](), dict[str, None]()
    for path in images:
        try:
            image_HW3 = read_image(path)
        except VLFormerError as error:
            done.failures.append(str(error))
            continue
        for answer in predictor.predict(image_HW3, asked):
            stem = _free_name(f"{_cut(path.stem)}-{_cut(slug(answer.expression))}", taken)
            done.results.append(_write(image_HW3, path, answer, output / stem))
            if answer.cut:
                cut.setdefault(answer.expression)
    limit = predictor.config.most_tokens_read
    done.warnings += [f"only the first {limit} tokens were read of {text[:40]!r}..." for text in cut]
    return done


def _write(image_HW3: NDArray[np.uint8], path: Path, answer: Segmentation, stem: Path) -> FileResult:
    mask_path, overlay_path = stem.with_name(stem.name + ".mask.png"), stem.with_name(stem.name + ".overlay.png")
    stem.parent.mkdir(parents=True, exist_ok=True)
    save_mask_png(answer.mask, mask_path)
    caption = answer.expression if answer.matches else f"{answer.expression}: nothing matches"
    save_image(draw_overlay(image_HW3, answer.mask, caption=caption), overlay_path)
    rle = encode_mask(answer.mask)
    height, width = answer.mask.shape
    return FileResult(
        image=str(path),
        width=width,
        height=height,
        expression=answer.expression,
        score=round(answer.score, 6),
        matches=answer.matches,
        bbox=rle_bbox(rle),
        area=rle_area(rle),
        segmentation=rle,
        mask=str(mask_path),
        overlay=str(overlay_path),
    )


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


def _free_name(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name.casefold() in taken:
        number += 1
        name = f"{wanted}-{number}"
    taken.add(name.casefold())
    return name
