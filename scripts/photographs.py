"""Expressions that can only mean one thing, for photographs with COCO instances: a test of what a model knows of them.

"the dog" where there is one dog, "the dog on the left" where there are two, apart from each other. The last 32
pictures by id are for validation, the others for training.

python scripts/photographs.py COCO_DIR OUTPUT_DIR     # COCO_DIR holds images/ and instances.json
vlformer prepare-data custom --from OUTPUT_DIR --images COCO_DIR/images
vlformer prepare-data scenes --scenario photos --from OUTPUT_DIR/training     # or OUTPUT_DIR/held-out, the other 32
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HELD_OUT = 32
SMALLEST = 0.01  # of the picture: smaller things may be there and not be annotated
APART = 0.15  # of the picture's width, between the centres of two things


def expressions(picture: dict[str, Any], annotations: list[dict[str, Any]]) -> Iterator[tuple[int, str, str]]:
    """Annotation id, expression and kind of each."""
    by_name = defaultdict(list)
    for annotation in annotations:
        by_name[annotation["name"]].append(annotation)
    for name, same in by_name.items():
        if any(one["iscrowd"] or one["area"] < SMALLEST * picture["width"] * picture["height"] for one in same):
            continue
        if len(same) == 1:
            yield same[0]["id"], f"the {name}", "category"
        elif len(same) == 2:
            left, right = sorted(same, key=_centre)
            if _centre(right) - _centre(left) >= APART * picture["width"]:
                yield left["id"], f"the {name} on the left", "place"
                yield right["id"], f"the {name} on the right", "place"


def _centre(annotation: dict[str, Any]) -> float:
    x, _, width, _ = annotation["bbox"]
    return float(x + width / 2)


def _write_part(source: Path, folder: Path, coco: dict[str, Any], pictures: list[dict[str, Any]]) -> None:
    """The same data with some of the pictures alone."""
    folder.mkdir(exist_ok=True)
    ids = {picture["id"] for picture in pictures}
    annotations = [one for one in coco["annotations"] if one["image_id"] in ids]
    document = {**coco, "images": pictures, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "images").unlink(missing_ok=True)
    (folder / "images").symlink_to((source / "images").resolve())


def main(source: Path, output: Path) -> None:
    coco = json.loads((source / "instances.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in coco["categories"]}
    of_picture = defaultdict(list)
    for annotation in coco["annotations"]:
        of_picture[annotation["image_id"]].append({**annotation, "name": names[annotation["category_id"]]})
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "instances.json", output / "instances.json")
    pictures = sorted(coco["images"], key=lambda picture: int(picture["id"]))
    with (output / "expressions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "annotation_id", "expression", "split", "kind"])
        for number, picture in enumerate(pictures):
            split = "val" if number >= len(pictures) - HELD_OUT else "train"
            for ann_id, words, kind in expressions(picture, of_picture[picture["id"]]):
                writer.writerow([picture["file_name"], ann_id, words, split, kind])
    _write_part(source, output / "training", coco, pictures[:-HELD_OUT])
    _write_part(source, output / "held-out", coco, pictures[-HELD_OUT:])
    print(f"written: {output / 'expressions.csv'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
