"""Masks as COCO run-length encodings: from and to arrays, and from the three forms that COCO files hold.

pycocotools does the work but for decoding, where it makes numpy 2 warn. It is C code that trusts its input, so whatever
comes from a file is checked here first.
Letters: H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vlformer_cli.types import RLE, VLFormerError

Runs = NDArray[np.int64]
_DIGITS_PER_RUN = 7  # 5 bits each: room for any 32-bit run, and no shift beyond the C code's integers


def encode_mask(mask_HW: NDArray[np.bool_]) -> RLE:
    """The RLE of a boolean mask; raises VLFormerError unless it is 2-D with one pixel or more.

    >>> encode_mask(np.array([[False, True], [True, True]]))
    {'size': [2, 2], 'counts': '13'}
    """
    if mask_HW.ndim != 2 or mask_HW.size == 0:
        raise VLFormerError(f"a mask of shape {mask_HW.shape} cannot be encoded: give height x width, neither 0")
    return _plain(coco_mask.encode(np.asfortranarray(mask_HW, dtype=bool).view(np.uint8)))


def decode_rle(rle: RLE, step: int = 1) -> NDArray[np.bool_]:
    """The boolean HW mask, or every `step`-th row and column of it from number `step // 2` on, made as such.

    Raises VLFormerError where the RLE is malformed.

    >>> decode_rle({"size": [2, 2], "counts": "13"}).tolist()
    [[False, True], [True, True]]
    >>> decode_rle({"size": [2, 2], "counts": "13"}, step=2).tolist()
    [[True]]
    """
    runs = check_rle(rle)
    height, width = rle["size"]
    if step > 1:
        runs, height, width = _every(step, runs, height, width)
    is_mask = np.arange(len(runs)) % 2 == 1  # runs of background and mask take turns, and background is first
    return np.ascontiguousarray(np.repeat(is_mask, runs).reshape(width, height).T)


def _every(step: int, runs: Runs, height: int, width: int) -> tuple[Runs, int, int]:
    """The runs of what is left of a mask where only every `step`-th row and column is kept, and its height, width."""

    def kept(places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """How many of those that are kept come before each place."""
        return np.clip(-((step // 2 - places) // step), 0, count)

    rows, columns = ((side - step // 2 + step - 1) // step for side in (height, width))
    column, row = np.divmod(np.cumsum(runs), height)
    is_kept = (column < width) & (column % step == step // 2)
    ends = kept(column, columns) * rows + np.where(is_kept, kept(row, rows), 0)
    return np.diff(ends, prepend=0), rows, columns


def rle_area(rle: RLE) -> int:
    """Pixels in the mask."""
    return int(coco_mask.area(rle))


def rle_bbox(rle: RLE) -> tuple[float, float, float, float]:
    """x, y, width, height in pixels of the tightest box; all zero for an empty mask."""
    x, y, width, height = (float(v) for v in coco_mask.toBbox(rle))
    return x, y, width, height


def union_rle(rles: Sequence[RLE]) -> RLE:
    """The union of one or more masks of one size; raises VLFormerError where the sizes differ or there are none."""
    sizes = {tuple(rle["size"]) for rle in rles}
    if len(sizes) != 1:
        raise VLFormerError(f"masks of sizes {sorted(sizes)} cannot be united: they must be of one picture")
    return _plain(coco_mask.merge(list(rles)))


def polygons_to_rle(segmentation: Any, height: int, width: int) -> RLE:
    """The mask of a COCO `segmentation`: a list of polygons [x, y, x, y, ...] in pixels, whose union is meant, or an
    RLE dict with compressed (text or bytes) or plain (list) counts.

    Raises VLFormerError where it is none of these, or does not fit into a picture of height x width pixels.

    >>> polygons_to_rle([[1, 0, 3, 0, 3, 2, 1, 2]], height=2, width=4)
    {'size': [2, 4], 'counts': '242'}
    >>> polygons_to_rle({"size": [2, 4], "counts": [2, 4, 2]}, height=2, width=4)
    {'size': [2, 4], 'counts': '242'}
    """
    if isinstance(segmentation, Mapping):
        return _from_rle(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        remedy = "write the list itself, without quotes" if isinstance(segmentation, str) else "give one of them"
        raise VLFormerError(f"segmentation {_shown(segmentation)} is neither a list of polygons nor an RLE: {remedy}")
    if all(_is_number(value) for value in segmentation):
        raise VLFormerError(f"segmentation {_shown(segmentation)} is a single polygon: put it in a list, [[...]]")
    for polygon in segmentation:
        _check_polygon(polygon, height, width)
    return _plain(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))


def check_rle(rle: RLE) -> Runs:
    """The runs of a compressed RLE, column-major; raises VLFormerError unless they fill its picture exactly."""
    try:
        height, width = (int(side) for side in rle["size"])
        runs = _runs(rle["counts"])
    except (AttributeError, KeyError, TypeError) as error:
        why = "it needs `size`, two whole numbers, and `counts`, text"
        raise VLFormerError(f"RLE {_shown(rle)} is malformed ({why}): prepare or export the masks again") from error
    except ValueError as error:
        raise VLFormerError(f"RLE {_shown(rle)} is malformed ({error}): prepare or export the masks again") from error
    _check_runs(runs, height, width)
    return runs


def _from_rle(segmentation: Mapping[str, Any], height: int, width: int) -> RLE:
    if list(segmentation.get("size", ())) != [height, width]:
        raise VLFormerError(
            f"RLE of size {segmentation.get('size')} does not fit a picture of height {height} and width {width}: "
            "`size` is height, width"
        )
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        if not all(isinstance(run, int) for run in counts):
            raise VLFormerError(f"RLE counts {_shown(counts)} are not whole numbers: export the masks again")
        _check_runs(np.array(counts, dtype=object), height, width)  # however large the numbers are
        return _plain(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    text = counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts
    rle = RLE(size=[height, width], counts=text)  # type: ignore[typeddict-item]  # what it is, check_rle finds out
    check_rle(rle)
    return rle


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    numbers = isinstance(polygon, list) and all(_is_number(value) for value in polygon)
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise VLFormerError(
            f"polygon {_shown(polygon)} is not a list x, y, x, y, ... of three points or more: {_remedy(polygon)}"
        )
    # Far outside, as when coordinates and picture are of different scales, pycocotools takes memory without limit
    for values, size in ((polygon[0::2], width), (polygon[1::2], height)):
        if odd := [value for value in values if not math.isfinite(value)]:
            raise VLFormerError(f"polygon {_shown(polygon)} has the coordinate {odd[0]}: give numbers")
        if outside := [value for value in values if not -size <= value <= 2 * size]:
            raise VLFormerError(
                f"polygon {_shown(polygon)} has a point at {outside[0]}, far outside a picture of {width} x {height}: "
                "give coordinates in that picture's pixels"
            )


def _remedy(polygon: Any) -> str:
    """What to do about a polygon that is none."""
    if not isinstance(polygon, list) or not polygon:
        return "give the list of its coordinates"
    if any(isinstance(value, list) for value in polygon):
        return "write the coordinates one after another, without brackets around each point"
    if any(isinstance(value, str) for value in polygon):
        return "write numbers without quotes"
    if len(polygon) % 2:
        return f"{len(polygon)} numbers are no pairs of x and y"
    return "add the missing points"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_runs(runs: NDArray[Any], height: int, width: int) -> None:
    area = height * width
    # none longer than the whole first, as a sum of such runs cannot overflow
    fits = min(height, width) >= 1 and runs.size > 0 and runs.min() >= 0 and runs.max() <= area
    if not fits or runs.sum() != area:
        total = sum(runs.tolist())
        raise VLFormerError(
            f"RLE with runs over {total} pixels does not fill a picture of height {height} and width {width}: "
            "export the masks again"
        )


def _runs(counts: str) -> Runs:
    """The run lengths of COCO's text form: 5 bits a character, low ones first; from the fourth on, a difference."""
    if not counts.isascii() or counts.startswith(("b'", 'b"')):
        raise ValueError("its counts are not COCO's text form; bytes have to be decoded to text")
    codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not codes.size:
        return codes
    if codes.min() < 0 or codes.max() >= 64:
        raise ValueError("not COCO's text form")
    last = np.flatnonzero(~codes & 0x20)  # each run's last character; its fifth bit is the sign
    if not last.size or last[-1] != codes.size - 1:
        raise ValueError("the text is cut off")
    digits = np.diff(last, prepend=-1)
    if digits.max() > _DIGITS_PER_RUN:
        raise ValueError("not COCO's text form")
    first = last - digits + 1
    place = np.arange(codes.size) - np.repeat(first, digits)
    values = np.add.reduceat((codes & 0x1F) << 5 * place, first)
    values -= np.where(codes[last] & 0x10, 1 << 5 * digits, 0)
    for start in (1, 2):
        values[start::2] = np.cumsum(values[start::2])
    return values


def _plain(rle: Mapping[str, Any]) -> RLE:
    return RLE(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
