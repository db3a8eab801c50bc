"""The REFER format: `refs(<split_by>).p` or `grefs(<split_by>).json`, and the `instances.json` that it points into.

Also what a ref looks like before its mask is made: `SourceRef`, which the reader of every layout returns.
"""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from vlformer_cli.data.sources.coco import CocoAnnotation, CocoImage, read_instances, read_json
from vlformer_cli.types import VLFormerError

Value = TypeVar("Value")
NO_TARGET = -1  # gRefCOCO's ann_id of an expression that means nothing
TEXT_FIELD = {"grefcoco": "raw"}
"""Which form of a sentence is the expression; "sent" for the other data sets.

REFER has two: `raw`, as typed, and `sent`, in lower case and without punctuation ("12:00" became "1200"). The published
numbers of RefCOCO/+/g that ours stand beside (VLFormer itself, CRIS, CGFormer, MDETR, LISA) were computed on `sent`,
which is also the only one that MDETR's and CRIS's files hold; LAVT took `raw`. ReLA, the reference of gRefCOCO, took
`raw`. Either is kept as it stands but for white space around it.
"""


@dataclass(frozen=True, slots=True)
class SourceRef:
    """One ref as a foreign layout has it."""

    place: str
    """File and entry, for messages."""
    split: str
    image: str
    """The picture's path below the folder of pictures."""
    image_id: int
    size: tuple[int, int] | None
    """Height, width in pixels as the layout states them; None where it does not."""
    ref_id: int
    ann_ids: tuple[int, ...]
    category: str
    masks: tuple[Any, ...]
    """COCO segmentations (polygons or RLE) or paths of PNG files, whose union is meant; none when nothing is meant."""
    expressions: tuple[str, ...]
    sent_ids: tuple[int, ...]


def read_refer(refs: Path, instances: Path, *, text_field: str = "sent") -> list[SourceRef]:
    """The refs of all splits in the file's order; raises VLFormerError with file, entry, value and remedy."""
    entries = _read_entries(refs)
    reader = _Reader(instances, text_field)
    return [reader.ref(f"{refs} entry {number} (from 0)", entry) for number, entry in enumerate(entries)]


def check_unique(refs: Iterable[SourceRef]) -> None:
    """Raises VLFormerError where a ref_id or a sent_id is used twice."""
    ref_places: dict[int, str] = {}
    sent_places: dict[int, str] = {}
    for ref in refs:
        ids = [("ref_id", ref.ref_id, ref_places), *(("sent_id", i, sent_places) for i in ref.sent_ids)]
        for name, value, places in ids:
            if value in places:
                raise VLFormerError(
                    f"{ref.place} has {name} {value}, as {places[value]} has: ids must be unique, fetch the file again"
                )
            places[value] = ref.place


def load_plain_pickle(path: Path) -> Any:
    """What a pickle holds, if that is made of lists, dicts, tuples, sets, text and numbers alone.

    Nothing of the file is run: raises VLFormerError where it names a class or a function. Text that Python 2 wrote as
    bytes is read as Latin-1.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin-1").load()
    except VLFormerError as error:
        raise VLFormerError(f"{path} {error}") from error
    except OSError as error:
        raise VLFormerError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except Exception as error:  # damaged bytes raise nearly anything: EOFError, KeyError, IndexError, MemoryError
        raise VLFormerError(f"{path} is not a whole pickle ({error}): fetch the file again") from error


def take(place: str, entry: Any, name: str, kind: type[Value]) -> Value:
    """`entry[name]`; raises VLFormerError, with the place, unless it is there and of that very type."""
    if not isinstance(entry, dict) or name not in entry:
        raise VLFormerError(f"{place} has no {name!r}: the file is damaged or of another format, fetch it again")
    value = entry[name]
    if type(value) is not kind:  # bool is an int to isinstance
        raise VLFormerError(f"{place} has the {name} {reprlib.repr(value)}: it must be of type {kind.__name__}")
    return value


def take_sentences(place: str, entry: Any, text_field: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Expressions and their ids from a ref's `sentences`, the other form where `text_field` is not given."""
    sentences = take(place, entry, "sentences", list)
    if not sentences:
        raise VLFormerError(f"{place} has no sentences: a ref needs one or more, add them or drop the ref")
    other = "sent" if text_field == "raw" else "raw"
    texts = []
    for sentence in sentences:
        field = other if isinstance(sentence, dict) and text_field not in sentence and other in sentence else text_field
        texts.append(take(f"{place}: a sentence", sentence, field, str).strip())
    return tuple(texts), tuple(take(f"{place}: a sentence", sentence, "sent_id", int) for sentence in sentences)


class _PlainUnpickler(pickle._Unpickler):  # in Python: on damaged files the one in C may take memory without limit
    def find_class(self, module: str, name: str) -> Any:
        raise VLFormerError(f"would run {module}.{name} when loaded, so it is no REFER file: delete it")


class _Reader:
    def __init__(self, instances: Path, text_field: str) -> None:
        self.instances, self.text_field = instances, text_field
        self.coco = read_instances(instances)
        self.images = {image.image_id: image for image in self.coco.images.values()}

    def ref(self, place: str, entry: Any) -> SourceRef:
        ref_id = take(place, entry, "ref_id", int)
        place = f"{place}, ref_id {ref_id}"
        image = self._image(place, entry)
        annotations = [self._annotation(place, ann_id, image) for ann_id in _ann_ids(place, entry)]
        # ReLA leaves crowd regions out of what several referents mean
        annotations = [annotation for annotation in annotations if not annotation.is_crowd] or annotations
        self._check_categories(place, entry)
        expressions, sent_ids = take_sentences(place, entry, self.text_field)
        return SourceRef(
            place=place,
            split=take(place, entry, "split", str),
            image=image.file_name,
            image_id=image.image_id,
            size=(image.height, image.width),
            ref_id=ref_id,
            ann_ids=tuple(annotation.ann_id for annotation in annotations),
            category=", ".join(dict.fromkeys(annotation.category for annotation in annotations)),
            masks=tuple(annotation.segmentation for annotation in annotations),
            expressions=expressions,
            sent_ids=sent_ids,
        )

    def _image(self, place: str, entry: Any) -> CocoImage:
        image_id = take(place, entry, "image_id", int)
        image = self.images.get(image_id)
        if image is None:
            raise VLFormerError(f"{place} names image_id {image_id}, which {self.instances} does not list: add it")
        if "file_name" in entry and image.file_name not in picture_names(take(place, entry, "file_name", str)):
            raise VLFormerError(
                f"{place} has the file_name {entry['file_name']!r}, but image_id {image_id} is {image.file_name!r} in "
                f"{self.instances}: the two files do not belong together, fetch both again"
            )
        return image

    def _annotation(self, place: str, ann_id: int, image: CocoImage) -> CocoAnnotation:
        annotation = self.coco.annotations.get(ann_id)
        if annotation is None:
            raise VLFormerError(f"{place} names ann_id {ann_id}, which {self.instances} does not have: mend it")
        if annotation.image_id != image.image_id:
            raise VLFormerError(
                f"{place} names ann_id {ann_id}, which is of image {annotation.image_id}, not {image.image_id}, in "
                f"{self.instances}: mend the id"
            )
        if not annotation.category:
            raise VLFormerError(f"{self.instances}: annotation {ann_id} has no category: add its category_id")
        return annotation

    def _check_categories(self, place: str, entry: Any) -> None:
        given = entry.get("category_id", [])
        for category_id in given if isinstance(given, list) else [given]:
            if category_id != NO_TARGET and category_id not in list(self.coco.categories):  # it may be unhashable
                shown = reprlib.repr(category_id)
                raise VLFormerError(f"{place} has category_id {shown}, which {self.instances} does not have: mend it")


def picture_names(file_name: str) -> tuple[str, str]:
    """What the picture of a ref may be called: in refs(...).p its name carries one more number, in grefs not always.

    >>> picture_names("COCO_train2014_000000581857_16.jpg")
    ('COCO_train2014_000000581857_16.jpg', 'COCO_train2014_000000581857.jpg')
    """
    name = PurePosixPath(file_name)
    return file_name, name.stem.rpartition("_")[0] + name.suffix


def _read_entries(path: Path) -> list[Any]:
    entries = read_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    if not isinstance(entries, list):
        raise VLFormerError(f"{path} holds a {type(entries).__name__}: it must be a list of refs, fetch the file again")
    return entries


def _ann_ids(place: str, entry: Any) -> list[int]:
    """Without repetitions; none where nothing is meant."""
    given = take(place, entry, "ann_id", list if isinstance(entry.get("ann_id"), list) else int)
    ids = given if isinstance(given, list) else [given]
    if any(type(ann_id) is not int for ann_id in ids):
        raise VLFormerError(f"{place} has the ann_id {reprlib.repr(ids)}: give whole numbers")
    if NO_TARGET in ids and set(ids) != {NO_TARGET}:
        raise VLFormerError(f"{place} has the ann_id {reprlib.repr(ids)}: {NO_TARGET} means no target and stands alone")
    return [ann_id for ann_id in dict.fromkeys(ids) if ann_id != NO_TARGET]
