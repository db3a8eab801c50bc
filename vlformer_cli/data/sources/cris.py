"""CRIS's layout, as its tools/data_process.py writes it: `anns/<dataset>/<split>.json` and `masks/<dataset>/`.

A JSON file is a list of refs {segment_id: REFER's ref_id, img_name, cat: index into COCO's 80 categories, bbox,
sentences: [{idx, sent_id, sent}], sentences_num}, and the mask of each is `<segment_id>.png`. A mask is 255 times the
number of its polygons that cover a pixel, in 8 bits: 254 where two do, so whatever is not 0 belongs to it.

Annotation ids are lost in this layout: the ref's id stands in for the annotation's. Sizes of pictures are not stated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlformer_cli.data.sources.coco import read_json
from vlformer_cli.data.sources.published import COCO_CATEGORIES
from vlformer_cli.data.sources.refer import SourceRef, take, take_sentences
from vlformer_cli.types import VLFormerError

FOLDERS = {
    "refcoco": ("refcoco", "unc"),
    "refcoco+": ("refcoco+", "unc"),
    "refcocog_u": ("refcocog", "umd"),
    "refcocog_g": ("refcocog", "google"),
}
"""Data set and partition by CRIS's name of the folder."""

_NAMES = list(COCO_CATEGORIES.values())
_COCO_ID = re.compile(r".*_(\d{12})\.jpg")


def read_cris(files: Sequence[Path], masks: Path) -> list[SourceRef]:
    """The refs of all files; raises VLFormerError with file, entry, value and remedy."""
    refs = []
    for path in files:
        entries = read_json(path)
        if not isinstance(entries, list):
            raise VLFormerError(f"{path} holds a {type(entries).__name__}: it must be a list of refs")
        refs += [_ref(f"{path} entry {number} (from 0)", path.stem, e, masks) for number, e in enumerate(entries)]
    return refs


def _ref(place: str, split: str, entry: Any, masks: Path) -> SourceRef:
    ref_id = take(place, entry, "segment_id", int)
    image = take(place, entry, "img_name", str)
    match = _COCO_ID.fullmatch(image)
    if match is None:
        raise VLFormerError(f"{place} has the img_name {image!r}: it must be like COCO_train2014_000000000009.jpg")
    category = take(place, entry, "cat", int)
    if not 0 <= category < len(_NAMES):
        raise VLFormerError(f"{place} has the cat {category}: it must be an index into COCO's {len(_NAMES)} categories")
    expressions, sent_ids = take_sentences(place, entry, "sent")
    return SourceRef(
        place=f"{place}, segment_id {ref_id}",
        split=split,
        image=image,
        image_id=int(match[1]),
        size=None,
        ref_id=ref_id,
        ann_ids=(ref_id,),
        category=_NAMES[category],
        masks=(masks / f"{ref_id}.png",),
        expressions=expressions,
        sent_ids=sent_ids,
    )
