"""COCO's `instances.json`: the pictures and annotations that expressions refer to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlformer_cli.types import VLFormerError


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An entry of `images`."""

    image_id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """An entry of `annotations`."""

    ann_id: int
    image_id: int
    category: str
    """The category's name; empty where the file names none."""
    segmentation: Any
    """As in the file, unchecked: `rle.polygons_to_rle` reads it."""
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class CocoInstances:
    """What of an `instances.json` is needed, by its keys."""

    images: dict[str, CocoImage]
    """By file name."""
    annotations: dict[int, CocoAnnotation]
    """By annotation id."""
    categories: dict[int, str] = field(default_factory=dict)
    """Names by category id."""


def read_instances(path: Path) -> CocoInstances:
    """Reads the file whole; raises VLFormerError, with file, entry and remedy, where it is not COCO's format."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise VLFormerError(f"{path} holds a {type(document).__name__}: COCO's format is an object with `images`")
    categories = {entry["id"]: str(entry["name"]) for entry in _entries(path, document, "categories", ("id", "name"))}
    images: dict[str, CocoImage] = {}
    for entry in _entries(path, document, "images", ("id", "file_name", "width", "height")):
        image = CocoImage(entry["id"], entry["file_name"], entry["width"], entry["height"])
        if images.setdefault(image.file_name, image) is not image:
            raise VLFormerError(f"{path} lists the image {image.file_name!r} twice: keep one entry")
    _check_unique(path, "image", [image.image_id for image in images.values()])
    annotations = list(_annotations(path, document, categories))
    _check_unique(path, "annotation", [annotation.ann_id for annotation in annotations])
    return CocoInstances(images, {annotation.ann_id: annotation for annotation in annotations}, categories)


def read_json(path: Path) -> Any:
    """The parsed file; raises VLFormerError, with file and line, where it is missing or not JSON in UTF-8."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise VLFormerError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except json.JSONDecodeError as error:
        raise VLFormerError(f"{path} line {error.lineno} is not JSON ({error.msg}): export the file again") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise VLFormerError(f"{path} is not JSON in UTF-8 ({error}): export the file again") from error


def _annotations(path: Path, document: dict[str, Any], categories: dict[int, str]) -> Iterator[CocoAnnotation]:
    for entry in _entries(path, document, "annotations", ("id", "image_id", "segmentation")):
        category_id = entry.get("category_id")
        if category_id is not None and categories and category_id not in categories:
            raise VLFormerError(f"{path}: annotation {entry['id']} has category_id {category_id}: no category has it")
        category = categories.get(category_id, "") if category_id is not None else ""
        is_crowd = bool(entry.get("iscrowd"))
        yield CocoAnnotation(entry["id"], entry["image_id"], category, entry["segmentation"], is_crowd)


def _entries(path: Path, document: dict[str, Any], part: str, needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The entries of a part, each with the `needed` fields and whole numbers where numbers are due."""
    entries = document.get(part, [] if part == "categories" else None)
    if not isinstance(entries, list):
        raise VLFormerError(f"{path} has no list `{part}`: it must be in COCO's instances format")
    for place, entry in enumerate(entries):
        missing = [name for name in needed if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise VLFormerError(f"{path}: `{part}` entry {place} (from 0) has no {missing[0]!r}: add it")
        for name in set(needed) & {"id", "image_id", "width", "height"}:
            if type(entry[name]) is not int:  # bool is an int to isinstance
                raise VLFormerError(f"{path}: `{part}` entry {place} has {name} {entry[name]!r}: use a whole number")
        yield entry


def _check_unique(path: Path, what: str, ids: list[int]) -> None:
    if len(set(ids)) != len(ids):
        seen: set[int] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise VLFormerError(f"{path} has {what} id {twice} twice: ids must be unique")
