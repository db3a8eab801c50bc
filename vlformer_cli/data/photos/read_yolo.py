"""YOLO's segmentation format: `data.yaml`, and for each image a text file with a line per object.

A line is `class x1 y1 x2 y2 ...`, the outline as fractions of width and height. Four numbers are a box (center, width,
height). An image without a text file shows none of the classes.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlformer_cli.data.images import image_size
from vlformer_cli.data.photos.annotations import AnnotatedPhoto, Annotation
from vlformer_cli.data.rle import polygons_to_rle, rle_bbox
from vlformer_cli.types import VLFormerError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
BOX = 4  # numbers of a line that is a box
FEWEST = 6  # numbers of an outline: three corners


def read_yolo(settings: Path, *, boxes: bool = False) -> list[AnnotatedPhoto]:
    """The photographs below the folder of `data.yaml`, sorted by path.

    Every class counts as annotated in every image, as YOLO takes it. Raises VLFormerError with file, line and remedy.
    """
    names = _class_names(settings)
    folder = settings.parent
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not images:
        raise VLFormerError(f"{folder} holds no images ({', '.join(sorted(ENDINGS))}): put them in {folder / 'images'}")
    ids = count(1)
    photos = []
    for number, path in enumerate(images, 1):
        height, width = image_size(path)
        annotations = [
            Annotation(next(ids), *parts) for parts in _objects(_labels_of(path), names, (height, width), boxes=boxes)
        ]
        photos.append(
            AnnotatedPhoto(number, path, width, height, tuple(annotations), labelled=frozenset(names.values()))
        )
    return photos


def _class_names(settings: Path) -> dict[int, str]:
    try:
        document = yaml.safe_load(settings.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VLFormerError(f"{settings} is not YAML: export the data set again") from error
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, dict) and all(isinstance(number, int) for number in names):
        return {number: str(name) for number, name in names.items()}
    raise VLFormerError(f"{settings} has no `names`: list the classes there, for example names: [cup, plate]")


def _labels_of(image: Path) -> Path:
    """The text file of an image: in `labels/` where the image is in `images/`, or beside it."""
    parts = list(image.parts)
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        parts[place] = "labels"
    return Path(*parts).with_suffix(".txt")


def _objects(path: Path, names: dict[int, str], size: tuple[int, int], *, boxes: bool) -> list[tuple[Any, ...]]:
    """Category, box and mask of each line."""
    if not path.is_file():
        return []
    found: list[tuple[Any, ...]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{path} line {number}"
        try:
            index, values = int(float(words[0])), [float(word) for word in words[1:]]
        except ValueError as error:
            raise VLFormerError(
                f"{where} is {line[:40]!r}: write a class number, then fractions from 0 to 1"
            ) from error
        if index not in names:
            raise VLFormerError(f"{where} has class {index}; data.yaml names {', '.join(map(str, sorted(names)))}")
        one = _object(where, values, size, boxes=boxes)
        if one is not None:
            found.append((names[index], *one))
    return found


def _object(where: str, values: list[float], size: tuple[int, int], *, boxes: bool) -> tuple[Any, ...] | None:
    height, width = size
    if len(values) == BOX:
        if not boxes:
            raise VLFormerError(f"{where} is a box, not an outline: give --boxes if the data has boxes only")
        x, y, w, h = (value * side for value, side in zip(values, (width, height, width, height), strict=True))
        return ((x - w / 2, y - h / 2, w, h), None)
    if len(values) < FEWEST or len(values) % 2:
        raise VLFormerError(f"{where} has {len(values)} numbers after the class: an outline has pairs, three or more")
    points = np.clip(np.array(values).reshape(-1, 2), 0, 1) * (width, height)
    mask = polygons_to_rle([points.ravel().tolist()], height, width)
    box = rle_bbox(mask)
    return (box, mask) if box[2] > 0 else None
