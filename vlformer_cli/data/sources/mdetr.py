"""MDETR's `finetune_<dataset>_<split>.json`: COCO's format with an entry of `images` per expression.

images       {id, original_id: COCO's image id, file_name, width, height, caption: the expression (REFER's `sent`), ...}
annotations  {id, image_id: the entry's, original_id: COCO's annotation id, category_id, bbox, ...}; gRefCOCO has
             several for an entry, or a single one with `empty` and original_id -1
MDETR's own files have boxes alone: masks then come from an instances.json of COCO or REFER by original_id. Files whose
annotations hold a `segmentation` (as VLFormer's and ReferFormer's converters write them) need none.

Ids of refs and sentences are lost in this layout and are numbered anew. Expressions of one picture that mean the same
annotations become one ref, as they were in REFER; of gRefCOCO this joins all that mean nothing in a picture.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlformer_cli.data.sources.coco import CocoInstances, read_instances, read_json
from vlformer_cli.data.sources.refer import NO_TARGET, SourceRef, take
from vlformer_cli.types import VLFormerError

FILE_NAME = re.compile(r"finetune_(?P<dataset>g?refcoco[+g]?)_(?P<split>train|val|testA|testB|test)\.json")

Entry = dict[str, Any]


def read_mdetr(files: Sequence[Path], instances: Path | None) -> list[SourceRef]:
    """The refs of all files; raises VLFormerError with file, entry, value and remedy."""
    reader = _Reader(instances)
    return [ref for path in files for ref in reader.refs(path)]


class _Reader:
    def __init__(self, instances: Path | None) -> None:
        self.instances = instances
        self._coco: CocoInstances | None = None
        self._ref_ids, self._sent_ids = itertools.count(1), itertools.count(1)

    def refs(self, path: Path) -> list[SourceRef]:
        match = FILE_NAME.fullmatch(path.name)
        assert match is not None
        document = read_json(path)
        listed = take(str(path), document, "categories", list)
        categories = {take(f"{path}: a category", category, "id", int): category for category in listed}
        of_image: dict[int, list[Entry]] = {}
        for number, annotation in enumerate(take(str(path), document, "annotations", list)):
            place = f"{path}: `annotations` entry {number} (from 0)"
            of_image.setdefault(take(place, annotation, "image_id", int), []).append(annotation)
        groups: dict[tuple[int, tuple[int, ...]], list[tuple[str, Entry, list[Entry]]]] = {}
        for number, image in enumerate(take(str(path), document, "images", list)):
            place = f"{path}: `images` entry {number} (from 0)"
            annotations = _meant(place, of_image.get(take(place, image, "id", int), []))
            ann_ids = tuple(take(place, annotation, "original_id", int) for annotation in annotations)
            key = take(place, image, "original_id", int), ann_ids
            groups.setdefault(key, []).append((place, image, annotations))
        return [self._ref(match["split"], *key, same, categories) for key, same in groups.items()]

    def _ref(
        self,
        split: str,
        image_id: int,
        ann_ids: tuple[int, ...],
        same: list[tuple[str, Entry, list[Entry]]],
        categories: dict[int, Entry],
    ) -> SourceRef:
        place, image, annotations = same[0]
        names = [_category(place, annotation, categories) for annotation in annotations]
        return SourceRef(
            place=place,
            split=split,
            image=take(place, image, "file_name", str),
            image_id=image_id,
            size=(take(place, image, "height", int), take(place, image, "width", int)),
            ref_id=next(self._ref_ids),
            ann_ids=ann_ids,
            category=", ".join(dict.fromkeys(names)),
            masks=tuple(self._mask(place, image_id, annotation) for annotation in annotations),
            expressions=tuple(take(where, entry, "caption", str).strip() for where, entry, _ in same),
            sent_ids=tuple(next(self._sent_ids) for _ in same),
        )

    def _mask(self, place: str, image_id: int, annotation: Entry) -> Any:
        if annotation.get("segmentation"):
            return annotation["segmentation"]
        if self.instances is None:
            raise VLFormerError(
                f"{place} has boxes but no masks, as MDETR's own files do: put COCO's instances_train2014.json into a "
                "folder `annotations` beside the files, or REFER's instances.json beside them"
            )
        if self._coco is None:
            self._coco = read_instances(self.instances)
        found = self._coco.annotations.get(annotation["original_id"])
        if found is None or found.image_id != image_id:
            raise VLFormerError(
                f"{place} means annotation {annotation['original_id']} of image {image_id}, which {self.instances} "
                "does not have: the two files do not belong together, fetch both again"
            )
        return found.segmentation


def _meant(place: str, annotations: list[Entry]) -> list[Entry]:
    """The annotations that an expression means; none where it means nothing, crowd regions only where they are all."""
    if not annotations:
        raise VLFormerError(f"{place} has no annotation: even an expression that means nothing has one, with `empty`")
    referents = [entry for entry in annotations if not entry.get("empty") and entry.get("original_id") != NO_TARGET]
    return [entry for entry in referents if entry.get("iscrowd") != 1] or referents


def _category(place: str, annotation: Entry, categories: dict[int, Entry]) -> str:
    category_id = take(place, annotation, "category_id", int)
    if category_id not in categories:
        raise VLFormerError(f"{place} has category_id {category_id}, which the file's `categories` do not list: add it")
    return take(f"{place}: category {category_id}", categories[category_id], "name", str)
