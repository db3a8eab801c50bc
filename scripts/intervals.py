"""mIoU with 95 % intervals, by kind, size and number of objects, from what `vlformer eval --output DIR` wrote.

Intervals are of a bootstrap over pictures (their samples are not independent): 2.5 and 97.5 % of 2,000 draws. The
control scores each answer against the referent of another expression about the same picture: it must fall far.

python scripts/intervals.py DIR/predictions.jsonl DATA_DIR SPLIT
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlformer_cli.data.dataset import ref_mask
from vlformer_cli.data.rle import decode_rle
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.metrics import overlap
from vlformer_cli.types import Ref

DRAWS = 2_000
SIZES = ((0.0, 0.01), (0.01, 0.03), (0.03, 0.1), (0.1, 1.0))  # parts of the picture


def interval(iou_N: NDArray[np.float64], picture_N: NDArray[np.int64]) -> str:
    """Mean and its interval, in percent."""
    _, number_N = np.unique(picture_N, return_inverse=True)
    sums, counts = (np.bincount(number_N, weights=weights) for weights in (iou_N, np.ones_like(iou_N)))
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return f"{100 * iou_N.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def controls(rows: list[dict[str, Any]], refs: dict[int, Ref]) -> list[float]:
    """IoU of each answer with the referent of the next expression about the picture that means something else."""
    found = []
    for n, row in enumerate(rows):
        others = (rows[(n + step) % len(rows)] for step in range(1, len(rows)))
        other = next((one for one in others if one["ref_id"] != row["ref_id"]), None)
        if other is not None:
            found.append(overlap(decode_rle(row["segmentation"]), ref_mask(refs[other["ref_id"]])).iou)
    return found


def objects_of(scenes: Path) -> dict[int, int]:
    """image_id -> the number of objects in the picture; nothing where the data set is not drawn."""
    if not scenes.exists():
        return {}
    lines = map(json.loads, scenes.read_text(encoding="utf-8").splitlines())
    return {scene["image_id"]: len(scene["objects"]) for scene in lines}


def main(predictions: Path, directory: Path, split: str) -> None:
    data = PreparedSplit(directory, split)
    of_picture: dict[str, list[Ref]] = defaultdict(list)
    for image in range(data.num_images):
        refs = {sample.ref.ref_id: sample.ref for sample in data.image_samples(image)}
        of_picture[next(iter(refs.values())).image].extend(refs.values())
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    counts = objects_of(directory / f"{split}.scenes.jsonl")
    groups: dict[str, list[int]] = defaultdict(list)
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for n, row in enumerate(rows):
        ref = next(one for one in of_picture[row["image"]] if one.ref_id == row["ref_id"])
        area = float(ref_mask(ref).mean())
        size = next(f"{low:.0%} to {high:.0%} of the picture" for low, high in SIZES if area <= high)
        known = counts.get(ref.image_id)
        objects = [f"{known:2} objects in the picture"] if known else []
        for group in ("all", row["kind"], size, *objects):
            groups[group].append(n)
        answers[row["image"]].append(row)
    numbers = {image: n for n, image in enumerate(of_picture)}
    iou_N = np.array([row["iou"] for row in rows])
    picture_N = np.array([numbers[row["image"]] for row in rows])
    print("| samples | count | mIoU, 95 % interval | Pr@0.5 |\n|---|---|---|---|")
    for group in sorted(groups, key=lambda name: (name != "all", name)):
        chosen = np.array(groups[group])
        precision = 100 * float((iou_N[chosen] > 0.5).mean())
        print(f"| {group} | {len(chosen)} | {interval(iou_N[chosen], picture_N[chosen])} | {precision:.1f} |")
    control = [
        iou for image, some in answers.items() for iou in controls(some, {r.ref_id: r for r in of_picture[image]})
    ]
    print(f"\nControl, the referent of another expression about the picture: mIoU {100 * float(np.mean(control)):.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
