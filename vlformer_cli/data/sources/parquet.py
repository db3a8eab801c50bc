"""The parquet mirrors jxu124/refcoco, refcocoplus and refcocog on Hugging Face: REFER's refs, a row each.

sent_ids, file_name, ann_id, ref_id, image_id, split, sentences [{raw, sent, sent_id, tokens}], category_id: REFER's
raw_anns, raw_image_info: the entries of instances.json, as JSON text
image_path, bbox (corners), captions, raw_sentences, global_image_id, anns_id: not read
Their splits are files `{train,validation,test,testB}-*.parquet`; RefCOCO's testA is called "test" there.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlformer_cli.data.sources.published import COCO_CATEGORIES
from vlformer_cli.data.sources.refer import SourceRef, take, take_sentences
from vlformer_cli.types import VLFormerError

FILE_NAME = re.compile(r"(train|validation|val|test|testA|testB)(-.*)?\.parquet")
FOLDERS = {"refcoco": "refcoco", "refcocoplus": "refcoco+", "refcocog": "refcocog"}
"""Data set by the mirror's name; the partition is each one's default."""

ROWS = 1024  # read at once
_COLUMNS = ("ref_id", "ann_id", "image_id", "split", "sentences", "category_id", "raw_anns", "raw_image_info")


def read_parquet(files: Sequence[Path], dataset: str, *, text_field: str = "sent") -> list[SourceRef]:
    """The refs of all files; raises VLFormerError with file, row, value and remedy, and where pyarrow is missing."""
    return [
        _ref(f"{path} row {number} (from 0)", row, dataset, text_field)
        for path in files
        for number, row in enumerate(_rows(path))
    ]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise VLFormerError(
            f"{path} needs pyarrow, which is not installed: pip install 'vlformer[parquet]' or pip install pyarrow"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
        if not missing:
            for batch in file.iter_batches(batch_size=ROWS, columns=list(_COLUMNS)):
                yield from batch.to_pylist()
    except (OSError, ValueError, NotImplementedError) as error:  # ArrowInvalid is a ValueError
        raise VLFormerError(f"{path} is not a whole parquet file ({error}): fetch it again") from error
    if missing:
        raise VLFormerError(
            f"{path} has no column {missing[0]!r}: only the mirrors jxu124/{{{','.join(FOLDERS)}}} can be read"
        )


def _ref(place: str, row: dict[str, Any], dataset: str, text_field: str) -> SourceRef:
    ref_id = take(place, row, "ref_id", int)
    place = f"{place}, ref_id {ref_id}"
    image = _document(place, row, "raw_image_info")
    annotation = _document(place, row, "raw_anns")
    for column, (entry, name) in {"image_id": (image, "id"), "ann_id": (annotation, "id")}.items():
        if take(place, row, column, int) != take(place, entry, name, int):
            raise VLFormerError(f"{place} has {column} {row[column]} beside the entry of {entry[name]}: fetch it again")
    category_id = take(place, row, "category_id", int)
    if category_id not in COCO_CATEGORIES:
        raise VLFormerError(f"{place} has category_id {category_id}, which is none of COCO's: fetch the file again")
    expressions, sent_ids = take_sentences(place, row, text_field)
    return SourceRef(
        place=place,
        split=_split(take(place, row, "split", str), dataset),
        image=take(place, image, "file_name", str),
        image_id=row["image_id"],
        size=(take(place, image, "height", int), take(place, image, "width", int)),
        ref_id=ref_id,
        ann_ids=(row["ann_id"],),
        category=COCO_CATEGORIES[category_id],
        masks=(take(place, annotation, "segmentation", type(annotation.get("segmentation"))),),
        expressions=expressions,
        sent_ids=sent_ids,
    )


def _document(place: str, row: dict[str, Any], column: str) -> dict[str, Any]:
    text = take(place, row, column, str)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise VLFormerError(f"{place} has no JSON in {column} ({error}): fetch the file again") from error
    if not isinstance(document, dict):
        raise VLFormerError(f"{place} has {text[:40]!r} in {column}: it must be an object, fetch the file again")
    return document


def _split(name: str, dataset: str) -> str:
    if name == "test" and dataset != "refcocog":
        return "testA"
    return {"validation": "val"}.get(name, name)
