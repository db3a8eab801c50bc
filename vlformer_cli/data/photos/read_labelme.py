"""labelme's format: a JSON file for each image, with its shapes."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vlformer_cli.data.images import image_size
from vlformer_cli.data.photos.annotations import AnnotatedPhoto, Annotation
from vlformer_cli.data.rle import encode_mask, rle_bbox
from vlformer_cli.data.sources.coco import read_json
from vlformer_cli.types import VLFormerError

Mask = NDArray[np.bool_]


def is_labelme(path: Path) -> bool:
    """Whether a JSON file is labelme's."""
    try:
        document = read_json(path)
    except VLFormerError:
        return False
    return isinstance(document, dict) and isinstance(document.get("shapes"), list) and "imagePath" in document


def read_labelme(files: list[Path]) -> list[AnnotatedPhoto]:
    """The photographs of labelme's JSON files, in their order.

    Every label that any of the files uses counts as annotated in every image. Shapes of one label that share a
    `group_id` are one object. Raises VLFormerError with file, shape and remedy.
    """
    ids = count(1)
    photos = []
    for number, path in enumerate(files, 1):
        document = read_json(path)
        image = path.parent / str(document["imagePath"]).replace("\\", "/")
        height, width = image_size(image)
        masks = _masks(path, document["shapes"], (height, width))
        annotations = []
        for label, mask_HW in masks:
            rle = encode_mask(mask_HW)
            annotations.append(Annotation(next(ids), label, rle_bbox(rle), rle))
        photos.append(AnnotatedPhoto(number, image, width, height, tuple(annotations), labelled=frozenset()))
    labels = frozenset(one.category for photo in photos for one in photo.annotations)
    return [replace(photo, labelled=labels) for photo in photos]


def _masks(path: Path, shapes: list[Any], size: tuple[int, int]) -> list[tuple[str, Mask]]:
    """Label and mask of each object that covers a pixel or more."""
    groups: dict[tuple[str, object], Mask] = {}
    for number, shape in enumerate(shapes):
        where = f"{path}: shape {number} (from 0)"
        try:
            label, points = str(shape["label"]), np.array(shape["points"], dtype=np.float64).reshape(-1, 2)
            kind, group = shape.get("shape_type") or "polygon", shape.get("group_id")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VLFormerError(f"{where} has no label or points: save the file again with labelme") from error
        mask_HW = _mask(where, kind, points, shape, size)
        if mask_HW is not None:
            key = (label, number if group is None else ("group", group))
            groups[key] = groups[key] | mask_HW if key in groups else mask_HW
    return [(label, mask_HW) for (label, _), mask_HW in groups.items() if mask_HW.any()]


def _mask(
    where: str, kind: str, points_P2: NDArray[np.float64], shape: dict[str, Any], size: tuple[int, int]
) -> Mask | None:
    """None for shapes without an area: points and lines."""
    drawn_HW = np.zeros(size, dtype=np.uint8)
    if kind == "mask":
        return _stored_mask(where, points_P2, shape, size)
    if kind == "circle" and len(points_P2) == 2:
        radius = float(np.hypot(*(points_P2[1] - points_P2[0])))
        center = round(float(points_P2[0, 0])), round(float(points_P2[0, 1]))
        cv2.circle(drawn_HW, center, round(radius), 1, thickness=-1)
    elif kind == "rectangle" and len(points_P2) == 2:
        (left, top), (right, bottom) = points_P2.min(0), points_P2.max(0)
        drawn_HW[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = 1
    elif kind == "polygon" and len(points_P2) >= 3:
        cv2.fillPoly(drawn_HW, [np.round(points_P2).astype(np.int32)], 1)
    elif kind in ("point", "points", "line", "linestrip"):
        return None
    else:
        raise VLFormerError(f"{where} is a {kind!r} of {len(points_P2)} points: draw it again as a polygon")
    return drawn_HW > 0


def _stored_mask(where: str, points_P2: NDArray[np.float64], shape: dict[str, Any], size: tuple[int, int]) -> Mask:
    """A mask shape: a PNG in base64 for the box between the two points."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as image:
            part_hw = np.asarray(image.convert("L")) > 0
    except (KeyError, TypeError, binascii.Error, UnidentifiedImageError, OSError) as error:
        raise VLFormerError(f"{where} is a mask without a PNG in it: save the file again with labelme") from error
    mask_HW = np.zeros(size, dtype=np.bool_)
    left, top = (max(0, round(float(value))) for value in points_P2.min(0))
    part_hw = part_hw[: size[0] - top, : size[1] - left]
    mask_HW[top : top + part_hw.shape[0], left : left + part_hw.shape[1]] = part_hw
    return mask_HW
