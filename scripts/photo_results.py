"""A table for photographs: by kind and source, people and others, small and large, beside two blind baselines.

Blind baselines answer without reading the expression: the largest object of the referent's category, and a box in the
middle of the image. Expressions without a target are left out; `vlformer eval` prints N-acc and T-acc for them.
Intervals are 95 % of a bootstrap over images (`scripts/intervals.py`).

python scripts/photo_results.py DIR/predictions.jsonl DATA_DIR SPLIT
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from intervals import interval
from numpy.typing import NDArray

from vlformer_cli.data.dataset import ref_mask
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.metrics import overlap
from vlformer_cli.types import Ref

SMALL, LARGE = 0.03, 0.1
"""Fractions of the image below which a referent is small, and above which it is large."""
MIDDLE = 0.5
"""Of width and height: the box in the middle."""


def refs_by_image(data: PreparedSplit) -> dict[str, list[Ref]]:
    """The refs of each image."""
    found: dict[str, list[Ref]] = defaultdict(list)
    for row in range(data.num_refs):
        ref = data.ref(row)
        found[ref.image].append(ref)
    return found


def middle_box(height: int, width: int) -> NDArray[np.bool_]:
    """A box of half the width and height, in the middle."""
    mask_HW = np.zeros((height, width), dtype=np.bool_)
    top, left = round(height * (1 - MIDDLE) / 2), round(width * (1 - MIDDLE) / 2)
    mask_HW[top : height - top, left : width - left] = True
    return mask_HW


def largest_of_category(ref: Ref, others: list[Ref]) -> NDArray[np.bool_]:
    """The mask of the largest single object with the referent's category among those that the data set refers to."""
    single = [one for one in others if one.category == ref.category and len(one.ann_ids) == 1]
    masks = [ref_mask(one) for one in single] or [ref_mask(ref)]
    return max(masks, key=lambda mask_HW: int(mask_HW.sum()))


def groups_of(row: dict[str, Any], ref: Ref) -> list[str]:
    """The lines of the table that a sample counts for."""
    area = float(ref_mask(ref).mean())
    size = "small (up to 3 %)" if area < SMALL else "large (over 10 %)" if area > LARGE else "medium"
    source = Path(row["image"]).name.split("-")[0]
    return ["all", f"kind: {row['kind']}", f"source: {source}", f"size: {size}", _what(ref)]


def _what(ref: Ref) -> str:
    return "people" if ref.category == "person" else "not people"


def main(predictions: Path, directory: Path, split: str) -> None:
    refs = refs_by_image(PreparedSplit(directory, split))
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    scores: list[tuple[float, float, float, float]] = []
    groups: dict[str, list[int]] = defaultdict(list)
    images: list[str] = []
    for row in rows:
        ref = next(one for one in refs[row["image"]] if one.ref_id == row["ref_id"])
        if ref.segmentation is None:
            continue
        truth = ref_mask(ref)
        blind = overlap(largest_of_category(ref, refs[row["image"]]), truth).iou
        center = overlap(middle_box(ref.height, ref.width), truth).iou
        for group in groups_of(row, ref):
            groups[group].append(len(scores))
        scores.append((row["iou"], row["best_of_q_iou"], blind, center))
        images.append(row["image"])
    score_N4 = np.array(scores)
    _, image_N = np.unique(images, return_inverse=True)
    print("| samples | count | mIoU, 95 % interval | Pr@0.5 | best of Q | largest of category | middle of image |")
    print("|---|---|---|---|---|---|---|")
    for group in sorted(groups, key=lambda name: (name != "all", name)):
        chosen = np.array(groups[group])
        some = 100 * score_N4[chosen].mean(0)
        precision = 100 * float((score_N4[chosen, 0] > 0.5).mean())
        print(
            f"| {group} | {len(chosen)} | {interval(score_N4[chosen, 0], image_N[chosen])} | {precision:.1f} | "
            f"{some[1]:.1f} | {some[2]:.1f} | {some[3]:.1f} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
