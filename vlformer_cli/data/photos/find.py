"""Finds out how the photographs of a folder are annotated, and reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlformer_cli.data.photos.annotations import AnnotatedPhoto, read_boxes, read_coco
from vlformer_cli.data.photos.read_labelme import is_labelme, read_labelme
from vlformer_cli.data.photos.read_yolo import read_yolo
from vlformer_cli.data.sources.coco import read_json
from vlformer_cli.types import VLFormerError

COCO_FILES = (
    *("instances.json", "_annotations.coco.json", "annotations.json", "annotations/instances*.json"),
    *("result.json", "*/_annotations.coco.json"),
)
"""Names that COCO files have: COCO's own, and those that CVAT, Roboflow and Label Studio export."""
BOXES_FILE = "boxes.json"
"""Boxes without masks, beside the folder `boxes/` of their images. It is read only where boxes are asked for."""
YOLO_FILES = ("data.yaml", "dataset.yaml", "*.yaml", "*.yml")


def find_photos(folder: Path, *, boxes: bool = False) -> list[AnnotatedPhoto]:
    """The photographs below a folder, in the order of their annotations.

    `captions.json` beside COCO's file may hold sentences: image name -> list. Raises VLFormerError, with the remedy,
    where the folder holds no annotations that are known, or none that can be used.
    """
    photos = _read(folder, boxes=boxes)
    if not any(photo.annotations for photo in photos):
        raise VLFormerError(f"{folder}: no photograph has an annotated object; there is nothing to refer to")
    return photos


def _read(folder: Path, *, boxes: bool) -> list[AnnotatedPhoto]:
    if not folder.is_dir():
        raise VLFormerError(f"{folder} is not a folder: give --from the folder of the photographs and annotations")
    if boxes and (folder / BOXES_FILE).is_file():
        return _with_captions(folder, read_boxes(folder / BOXES_FILE, folder / "boxes"))
    for pattern in COCO_FILES:
        found = sorted(folder.glob(pattern))
        if found:
            photos = [photo for path in found for photo in read_coco(path, _images(folder, path), boxes=boxes)]
            return _with_captions(folder, photos)
    for pattern in YOLO_FILES:
        found = sorted(folder.glob(pattern))
        if found:
            return read_yolo(found[0], boxes=boxes)
    if (folder / BOXES_FILE).is_file():
        raise VLFormerError(f"{folder / BOXES_FILE} has boxes and no masks: give --boxes, and a model finds the masks")
    files = [path for path in sorted(folder.rglob("*.json")) if is_labelme(path)]
    if files:
        return read_labelme(files)
    raise VLFormerError(
        f"{folder} holds no annotations: put COCO's instances.json beside images/, YOLO's data.yaml beside images/ and "
        "labels/, or labelme's JSON files beside the images"
    )


def _images(folder: Path, annotations: Path) -> Path:
    """Where the images of a COCO file lie."""
    candidates = (annotations.parent / "images", folder / "images", annotations.parent)
    return next(path for path in candidates if path.is_dir())


def _with_captions(folder: Path, photos: list[AnnotatedPhoto]) -> list[AnnotatedPhoto]:
    path = folder / "captions.json"
    if not path.is_file():
        return photos
    captions = read_json(path)
    if not isinstance(captions, dict):
        raise VLFormerError(f"{path} must map image names to lists of sentences")
    return [replace(photo, captions=tuple(captions.get(photo.path.name, ()))) for photo in photos]
