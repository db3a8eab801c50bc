"""Masks for objects of which only the box is known: the model's answers, kept where box and mask agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlformer_cli.data.images import read_image
from vlformer_cli.data.photos.annotations import AnnotatedPhoto, Annotation, Box, to_coco
from vlformer_cli.data.photos.find import find_photos
from vlformer_cli.data.photos.names import names_of
from vlformer_cli.data.rle import encode_mask, rle_bbox
from vlformer_cli.engine.manifest import write_json
from vlformer_cli.engine.predict import Predictor

MARGIN = 0.2
"""How much wider than its box the part of an image is in which the object is sought."""
AGREE = 0.75
"""The least IoU of the annotated box and the box around the mask."""
SMALLEST = 24
"""Pixels of a box's longer side; in smaller ones no outline can be seen."""


@dataclass(frozen=True, slots=True)
class Filled:
    """Photographs with the masks that were found, and how many objects that are."""

    photos: list[AnnotatedPhoto]
    found: int
    boxes: int


def fill_masks(
    predictor: Predictor, photos: Sequence[AnnotatedPhoto], *, progress: Callable[[int, int], None] | None = None
) -> Filled:
    """Asks for each object in a crop around its box; what does not agree with its box stays without a mask."""
    filled, found, boxes = [], 0, 0
    for number, photo in enumerate(photos, 1):
        image_HW3 = read_image(photo.path)
        annotations = [_with_mask(predictor, image_HW3, one) for one in photo.annotations]
        filled.append(replace(photo, annotations=tuple(annotations)))
        boxes += sum(one.mask is None for one in photo.annotations)
        found += sum(new.mask is not one.mask for new, one in zip(annotations, photo.annotations, strict=True))
        if progress is not None:
            progress(number, len(photos))
    return Filled(filled, found, boxes)


def write_filled(
    source: Path, folder: Path, predictor: Predictor, *, progress: Callable[[int, int], None] | None = None
) -> Filled:
    """Writes `folder/instances.json`: the annotations of `source`, boxes and all, with the masks that were found.

    The images stay where they are. Raises VLFormerError where `source` holds no annotations.
    """
    filled = fill_masks(predictor, find_photos(source.resolve(), boxes=True), progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "instances.json", to_coco(filled.photos))
    captions = {photo.path.name: list(photo.captions) for photo in filled.photos if photo.captions}
    if captions:
        write_json(folder / "captions.json", captions)
    return filled


def _with_mask(predictor: Predictor, image_HW3: NDArray[np.uint8], annotation: Annotation) -> Annotation:
    if annotation.mask is not None or annotation.is_crowd or max(annotation.box[2:]) < SMALLEST:
        return annotation
    left, top, right, bottom = crop_around(annotation.box, (image_HW3.shape[0], image_HW3.shape[1]))
    crop = np.ascontiguousarray(image_HW3[top:bottom, left:right])
    (answer,) = predictor.predict(crop, [f"the {names_of(annotation.category)[0]}"])
    mask_HW = np.zeros(image_HW3.shape[:2], dtype=np.bool_)
    mask_HW[top:bottom, left:right] = answer.mask
    rle = encode_mask(mask_HW)
    if box_iou(rle_bbox(rle), annotation.box) < AGREE or _leaves_crop(mask_HW, (left, top, right, bottom)):
        return annotation
    return replace(annotation, mask=rle)


def _leaves_crop(mask_HW: NDArray[np.bool_], crop: tuple[int, int, int, int]) -> bool:
    """Whether the mask reaches a side of the crop that is not a side of the image: it would go on beyond it."""
    left, top, right, bottom = crop
    height, width = mask_HW.shape
    return bool(
        (left > 0 and mask_HW[:, left].any())
        or (top > 0 and mask_HW[top].any())
        or (right < width and mask_HW[:, right - 1].any())
        or (bottom < height and mask_HW[bottom - 1].any())
    )


def crop_around(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the box with a margin, within an image of `size` (height, width).

    >>> crop_around((10.0, 20.0, 100.0, 50.0), (100, 200))
    (0, 10, 130, 80)
    """
    x, y, width, height = box
    left, top = max(0, int(x - MARGIN * width)), max(0, int(y - MARGIN * height))
    right, bottom = int(np.ceil(x + (1 + MARGIN) * width)), int(np.ceil(y + (1 + MARGIN) * height))
    return left, top, min(size[1], right), min(size[0], bottom)


def box_iou(one: Box, two: Box) -> float:
    """IoU of two boxes x, y, width, height.

    >>> box_iou((0, 0, 10, 10), (5, 0, 10, 10))
    0.3333333333333333
    """
    across = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    down = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    both = max(0.0, across) * max(0.0, down)
    return both / max(one[2] * one[3] + two[2] * two[3] - both, 1e-9)
