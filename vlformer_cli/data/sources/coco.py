"""COCO's `instances.json`: the pictures and annotations that expressions refer to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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
    image_faults: dict[str, str] = field(default_factory=dict)
    """By file name: why an image cannot be used. Empty unless faults were to be kept."""
    annotation_faults: dict[int, str] = field(default_factory=dict)
    """By annotation id: why an annotation cannot be used."""
    count: int = 0
    """Entries of `annotations`, those that cannot be used included."""


def read_instances(path: Path, *, keep_faults: bool = False) -> CocoInstances:
    """Reads the file whole; raises VLFormerError, with file, entry and remedy, where it is not COCO's format.

    With `keep_faults`, a faulty image or annotation is noted and raises nothing, as it may not be needed.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise VLFormerError(f"{path} holds a {type(document).__name__}: COCO's format is an object with `images`")
    images: dict[str, CocoImage] = {}
    annotations: dict[int, CocoAnnotation] = {}
    image_faults: dict[str, str] = {}
    annotation_faults: dict[int, str] = {}
    categories = {}
    for place, entry in _entries(path, document, "categories"):
        checked = _checked(place, entry, ("id", "name"))
        categories[checked["id"]] = str(checked["name"])
    repeated = _repeated(_entries(path, document, "images"))
    for place, entry in _entries(path, document, "images"):
        with _noting(image_faults if keep_faults else None, _get(entry, "file_name")):
            _add_image(path, images, repeated, place, entry)
    repeated = _repeated(_entries(path, document, "annotations"))
    for place, entry in _entries(path, document, "annotations"):
        with _noting(annotation_faults if keep_faults else None, whole(_get(entry, "id"))):
            annotation = _annotation(path, categories, repeated, place, entry)
            annotations[annotation.ann_id] = annotation
    return CocoInstances(
        images, annotations, categories, image_faults, annotation_faults, len(document.get("annotations", []))
    )


def whole(value: Any) -> int | None:
    """A whole number, also one that was written as 1.0; None for anything else.

    >>> whole(7), whole(7.0), whole(7.5), whole("7"), whole(True)
    (7, 7, None, None, None)
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None  # bool is an int to isinstance


def read_json(path: Path) -> Any:
    """The parsed file; raises VLFormerError, with file and line, where it is missing or not JSON in UTF-8."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise VLFormerError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except json.JSONDecodeError as error:
        raise VLFormerError(f"{path} line {error.lineno} is not JSON ({error.msg}): export the file again") from error
    except UnicodeDecodeError as error:
        raise VLFormerError(f"{path} is not in UTF-8 ({odd_byte(error)}): export the file again") from error
    except RecursionError as error:
        raise VLFormerError(f"{path} is nested too deeply to be read: export the file again") from error


def odd_byte(error: UnicodeDecodeError) -> str:
    """Where a text stops being UTF-8.

    >>> odd_byte(UnicodeDecodeError("utf-8", b"caf\\xe9", 3, 4, ""))
    'byte 0xe9 at position 3'
    """
    return f"byte 0x{error.object[error.start]:02x} at position {error.start}"


def _repeated(entries: Iterator[tuple[str, Any]]) -> set[int]:
    """Ids that several entries have."""
    counts = Counter(whole(_get(entry, "id")) for _, entry in entries)
    return {number for number, count in counts.items() if number is not None and count > 1}


def _add_image(path: Path, images: dict[str, CocoImage], repeated: set[int], place: str, entry: Any) -> None:
    entry = _checked(place, entry, ("id", "file_name", "width", "height"))
    image = CocoImage(entry["id"], entry["file_name"], entry["width"], entry["height"])
    if image.file_name in images:
        raise VLFormerError(f"{path} lists the image {image.file_name!r} twice: keep one entry")
    if image.image_id in repeated:
        raise VLFormerError(f"{path} has image id {image.image_id} twice: ids must be unique")
    images[image.file_name] = image


def _annotation(path: Path, categories: dict[int, str], repeated: set[int], place: str, entry: Any) -> CocoAnnotation:
    entry = _checked(place, entry, ("id", "image_id", "segmentation"))
    ann_id, category_id = entry["id"], entry.get("category_id")
    if ann_id in repeated:
        raise VLFormerError(f"{path} has annotation id {ann_id} twice: ids must be unique")
    if category_id is not None and categories and category_id not in categories:
        raise VLFormerError(
            f"{path}: annotation {ann_id} has category_id {category_id}: no category has it, add it to `categories`"
        )
    category = categories.get(category_id, "") if category_id is not None else ""
    return CocoAnnotation(ann_id, entry["image_id"], category, entry["segmentation"], bool(entry.get("iscrowd")))


def _entries(path: Path, document: dict[str, Any], part: str) -> Iterator[tuple[str, Any]]:
    """The entries of a part, and what to call them in messages."""
    entries = document.get(part, [] if part == "categories" else None)
    if not isinstance(entries, list):
        raise VLFormerError(f"{path} has no list `{part}`: it must be in COCO's instances format")
    for number, entry in enumerate(entries):
        yield f"{path}: `{part}` entry {number}", entry


def _checked(place: str, entry: Any, needed: tuple[str, ...]) -> dict[str, Any]:
    """The entry, with the `needed` fields, and whole numbers where numbers are due; raises VLFormerError."""
    checked = dict(entry) if isinstance(entry, dict) else {}
    for name in needed:
        if name not in checked:
            raise VLFormerError(f"{place} (from 0) has no {name!r}: add it")
        if name in ("id", "image_id", "width", "height"):
            number = whole(checked[name])
            if number is None:
                raise VLFormerError(f"{place} has {name} {checked[name]!r}: use a whole number")
            checked[name] = number
        if name == "file_name" and not isinstance(checked[name], str):
            raise VLFormerError(f"{place} has file_name {checked[name]!r}: it must be text")
    return checked


def _get(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, dict) else None


@contextmanager
def _noting(faults: dict[Any, str] | None, key: Any) -> Iterator[None]:
    """Keeps the message of a VLFormerError under `key`; None: lets it pass."""
    try:
        yield
    except VLFormerError as error:
        if faults is None:
            raise
        if isinstance(key, str | int):
            faults[key] = str(error)
