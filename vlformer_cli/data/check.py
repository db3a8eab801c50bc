"""Checks a prepared split row by row and says everything that is wrong with it, not only the first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlformer_cli.data.images import image_size, read_image
from vlformer_cli.data.rle import check_rle, rle_area, rle_bbox
from vlformer_cli.data.store import PreparedSplit, file_sha256
from vlformer_cli.types import Ref, VLFormerError

BBOX_SLACK = 1.5  # pixels: boxes of COCO are of the polygon, ours of the mask


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    place: str
    """`<split>.jsonl line N`, or the file."""
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def check_split(split: PreparedSplit, *, decode_images: bool = False) -> Iterator[Problem]:
    """Every problem of the split's files, rows, masks and pictures; `decode_images` reads the pictures whole."""
    stated = split.manifest["splits"][split.split]
    lines = split.directory / f"{split.split}.jsonl"
    if stated.get("sha256") and file_sha256(lines) != stated["sha256"]:
        yield Problem(lines.name, "its SHA-256 is not the manifest's: it was changed after it was prepared")
    rows = min(split.num_refs, split.indexed_refs)
    if rows != split.num_refs:
        yield Problem(f"{split.split}.index.npy", f"{split.indexed_refs} rows, the manifest states {split.num_refs}")
    seen = _Seen()
    for row in range(rows):
        place = f"{lines.name} line {row + 1}"
        try:
            ref = split.ref(row)
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            yield Problem(place, f"not a ref ({type(error).__name__}: {error})")
            continue
        for what in [*_ref_problems(ref), *seen.problems(ref), *seen.image_problems(split, ref, decode_images)]:
            yield Problem(place, what)
    for name, count in (("images", len(seen.images)), ("expressions", seen.expressions)):
        if stated[name] != count:
            yield Problem("manifest.json", f"states {stated[name]} {name} for {split.split}, its rows have {count}")


def _ref_problems(ref: Ref) -> Iterator[str]:
    if not ref.expressions:
        yield "no expression"
    if len(ref.sent_ids) != len(ref.expressions):
        yield f"{len(ref.expressions)} expressions, but {len(ref.sent_ids)} sent_ids"
    for name, labels in (("kinds", ref.kinds), ("anchors", ref.anchors)):
        if labels and len(labels) != len(ref.expressions):
            yield f"{len(ref.expressions)} expressions, but {len(labels)} {name}"
    for number, expression in enumerate(ref.expressions, 1):
        if not isinstance(expression, str) or not expression.strip():
            yield f"expression {number} is empty or no text: {expression!r}"
    yield from _anchor_problems(ref)
    if ref.segmentation is not None:
        yield from _mask_problems(ref, ref.segmentation)
    elif ref.ann_ids:
        yield f"no mask, but annotations {list(ref.ann_ids)}"


def _anchor_problems(ref: Ref) -> Iterator[str]:
    for number, anchor in enumerate(ref.anchors, 1):
        if anchor is not None:
            yield from (f"anchor {number}: {what}" for what in _rle_problems(ref, anchor))


def _mask_problems(ref: Ref, rle: Any) -> Iterator[str]:
    problems = list(_rle_problems(ref, rle))
    yield from problems
    if not problems:
        off = max(abs(ours - theirs) for ours, theirs in zip(rle_bbox(rle), ref.bbox, strict=True))
        if off > BBOX_SLACK:
            yield f"bbox {list(ref.bbox)} is {off:.1f} pixels off the mask's {list(rle_bbox(rle))}"


def _rle_problems(ref: Ref, rle: Any) -> Iterator[str]:
    try:
        check_rle(rle)
    except VLFormerError as error:
        yield str(error)
        return
    if list(rle["size"]) != [ref.height, ref.width]:
        yield f"mask of height x width {rle['size']} in a picture of {[ref.height, ref.width]}"
    elif not rle_area(rle):
        yield "the mask is empty; null means that nothing is meant"


class _Seen:
    """What earlier rows had: ids must be new, a picture is looked at once."""

    def __init__(self) -> None:
        self.expressions = 0
        self.ref_ids: set[int] = set()
        self.sent_ids: set[int] = set()
        self.images: dict[str, tuple[int, int] | None] = {}

    def problems(self, ref: Ref) -> Iterator[str]:
        if ref.ref_id in self.ref_ids:
            yield f"ref_id {ref.ref_id} stands in an earlier row too"
        self.ref_ids.add(ref.ref_id)
        self.expressions += len(ref.expressions)
        for sent_id in ref.sent_ids:
            if sent_id in self.sent_ids:
                yield f"sent_id {sent_id} stands in an earlier row too"
            self.sent_ids.add(sent_id)

    def image_problems(self, split: PreparedSplit, ref: Ref, decode: bool) -> Iterator[str]:
        if ref.image not in self.images:
            self.images[ref.image] = None
            path = split.image_path(ref)
            try:
                self.images[ref.image] = read_image(path).shape[:2] if decode else image_size(path)
            except VLFormerError as error:
                yield str(error)
        size = self.images[ref.image]
        if size is not None and size != (ref.height, ref.width):
            yield f"{ref.image} is {size[1]} x {size[0]} pixels, the row says {ref.width} x {ref.height}"
