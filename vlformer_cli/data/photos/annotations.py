"""Annotated photographs, whatever tool wrote the annotations.

A photograph says of which categories every instance is annotated. Only these categories carry a proof: "the dog" is
unique, or absent, only where all dogs are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlformer_cli.data.photos.names import COCO_CATEGORIES
from vlformer_cli.data.rle import polygons_to_rle, rle_bbox
from vlformer_cli.data.sources.coco import read_json
from vlformer_cli.types import RLE, VLFormerError

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated object."""

    ann_id: int
    category: str
    box: Box
    """x, y, width, height in pixels."""
    mask: RLE | None
    """None where only the box is known."""
    is_crowd: bool = False
    """A group of objects under one annotation."""


@dataclass(frozen=True, slots=True)
class AnnotatedPhoto:
    """One photograph with its annotations."""

    image_id: int
    path: Path
    width: int
    height: int
    annotations: tuple[Annotation, ...]
    labelled: frozenset[str]
    """The categories of which every instance is annotated."""
    captions: tuple[str, ...] = ()
    """Sentences that describe the whole photograph."""


def read_coco(path: Path, images: Path, *, boxes: bool = False) -> list[AnnotatedPhoto]:
    """The photographs of a COCO file, with paths below `images`.

    An image entry may have a field `labelled`: "all" (the 80 categories of COCO), or a list of category names. Without
    the field, every category of the file counts as annotated everywhere. `boxes`: masks are not needed.
    Raises VLFormerError, with file, entry and remedy, where the file is not in COCO's format.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise VLFormerError(f"{path} has no list `images`: it must be in COCO's instances format")
    try:
        return _photos(document, images, boxes=boxes)
    except (KeyError, TypeError, AttributeError) as error:
        raise VLFormerError(f"{path}: an entry lacks or has a wrong {error}: export the file again") from error
    except VLFormerError as error:
        raise VLFormerError(f"{path}: {error}") from error


def _photos(document: dict[str, Any], images: Path, *, boxes: bool) -> list[AnnotatedPhoto]:
    names = {entry["id"]: str(entry["name"]) for entry in document.get("categories", [])}
    if not names:
        raise VLFormerError("`categories` is empty: expressions are made of category names, add them")
    entries: dict[int, list[dict[str, Any]]] = {}
    for entry in document.get("annotations", []):
        entries.setdefault(entry["image_id"], []).append(entry)
    return [
        AnnotatedPhoto(
            image_id=image["id"],
            path=images / image["file_name"],
            width=image["width"],
            height=image["height"],
            annotations=tuple(
                one
                for entry in entries.get(image["id"], [])
                if (one := _annotation(entry, names, image, boxes=boxes)) is not None
            ),
            labelled=_labelled(image.get("labelled"), names),
        )
        for image in document["images"]
    ]


def _annotation(
    entry: dict[str, Any], names: dict[int, str], image: dict[str, Any], *, boxes: bool
) -> Annotation | None:
    """None for an empty mask."""
    if entry["category_id"] not in names:
        raise VLFormerError(f"annotation {entry['id']} has category_id {entry['category_id']}, which no category has")
    segmentation = entry.get("segmentation")
    mask = None
    if segmentation:
        try:
            mask = polygons_to_rle(segmentation, image["height"], image["width"])
        except VLFormerError as error:
            raise VLFormerError(f"annotation {entry['id']} of {image['file_name']}: {error}") from error
    elif not boxes:
        raise VLFormerError(
            f"annotation {entry['id']} of {image['file_name']} has no segmentation: "
            "give --boxes if the data has boxes only"
        )
    box = rle_bbox(mask) if mask is not None else _box(entry)
    if box[2] <= 0 or box[3] <= 0:
        return None
    return Annotation(entry["id"], names[entry["category_id"]], box, mask, bool(entry.get("iscrowd")))


def _box(entry: dict[str, Any]) -> Box:
    x, y, width, height = (float(value) for value in entry["bbox"])
    return x, y, width, height


def _labelled(value: object, names: dict[int, str]) -> frozenset[str]:
    if value is None:
        return frozenset(names.values())
    if value == "all":
        return COCO_CATEGORIES
    if not isinstance(value, list):
        raise VLFormerError(f'`labelled` is {value!r}: give "all" or a list of category names')
    return frozenset(str(name) for name in value)


def read_boxes(path: Path, images: Path) -> list[AnnotatedPhoto]:
    """The photographs of a `boxes.json`: a list of `{file_name, width, height, labelled, boxes: [{category, bbox}]}`.

    Raises VLFormerError, with the file and the remedy, where it is something else.
    """
    document = read_json(path)
    photos, ann_id = [], 0
    try:
        for number, image in enumerate(document, 1):
            annotations: list[Annotation] = []
            for entry in image["boxes"]:
                ann_id += 1
                annotations.append(Annotation(ann_id, str(entry["category"]), _box(entry), mask=None))
            labelled = _labelled(image.get("labelled"), {a.ann_id: a.category for a in annotations})
            path_of = images / image["file_name"]
            photos.append(
                AnnotatedPhoto(number, path_of, image["width"], image["height"], tuple(annotations), labelled)
            )
    except (KeyError, TypeError, ValueError) as error:
        raise VLFormerError(
            f"{path}: an entry lacks or has a wrong {error}: see docs/data.md for the format"
        ) from error
    return photos


def to_coco(photos: list[AnnotatedPhoto]) -> dict[str, Any]:
    """COCO's format, with absolute paths, `labelled` and, where there is no mask, the box alone."""
    ids = {name: number for number, name in enumerate(sorted(_categories(photos)), 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, photo in enumerate(photos, 1):
        image = {"id": number, "file_name": str(photo.path), "width": photo.width, "height": photo.height}
        images.append({**image, "labelled": sorted(photo.labelled)})
        for one in photo.annotations:
            entry: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[one.category]}
            entry |= {"bbox": list(one.box), "iscrowd": int(one.is_crowd)}
            annotations.append(entry | ({} if one.mask is None else {"segmentation": one.mask}))
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _categories(photos: list[AnnotatedPhoto]) -> set[str]:
    return {one.category for photo in photos for one in photo.annotations}
