"""The expressions file of a custom data set: JSON list, JSONL or CSV, a row per expression.

image           file name of the picture, relative to the folder of pictures
expression      the text
annotation_id   the annotation that it means, an id of instances.json; or
annotation_ids  several, whose union is meant (in CSV parted by spaces or semicolons); or
mask            a PNG without an alpha channel, relative to the expressions file, not 0 where the referent is; or none
                of these three: the expression means nothing in the picture
split           optional: train, val, test or any other name
kind            optional: a label by which evaluations are broken down
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlformer_cli.data.sources.bad_rows import BadRows
from vlformer_cli.data.sources.coco import odd_byte, read_json, whole
from vlformer_cli.data.text import has_words
from vlformer_cli.types import VLFormerError

FIELDS = ("image", "expression", "annotation_id", "annotation_ids", "mask", "split", "kind")
SUFFIXES = (".json", ".jsonl", ".csv")
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # it becomes a file name


@dataclass(frozen=True, slots=True)
class ExpressionRow:
    """One expression. Without `ann_ids` and `mask` it means nothing in the picture."""

    place: str
    """File and line or row, for messages."""
    image: str
    expression: str
    ann_ids: tuple[int, ...]
    """Sorted, without repetitions."""
    mask: str | None
    split: str
    kind: str
    number: int = 0
    """Of the row among all rows, from 1."""


def read_expressions(path: Path, default_split: str, bad: BadRows) -> list[ExpressionRow]:
    """The rows of a .json, .jsonl or .csv file; those that cannot be used go to `bad`.

    White space within an expression is reduced to single spaces; rows without a split get `default_split`.
    Raises VLFormerError, with file and remedy, for what is wrong with the whole file.
    """
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise VLFormerError(f"{path} ends in {path.suffix!r}: an expressions file is one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise VLFormerError(f"{path} is not there: check the path of the expressions file")
    rows = []
    try:
        for number, (place, fields) in enumerate(reader(path), 1):
            try:
                rows.append(replace(_row(place, fields, default_split), number=number))
            except VLFormerError as error:
                bad.add(number, error)
    except UnicodeDecodeError as error:
        raise VLFormerError(f"{path} is not in UTF-8 ({odd_byte(error)}): save it again as UTF-8") from error
    if not rows and not bad.count:
        raise VLFormerError(f"{path} holds no expressions: give it a row per expression")
    return rows


def ambiguous(rows: Iterable[ExpressionRow]) -> Iterator[str]:
    """A message for each row that says of one thing in a picture what an earlier row says of another; case aside.

    >>> from dataclasses import replace
    >>> row = ExpressionRow("line 2", "a.jpg", "the cup", (1,), None, "train", "")
    >>> list(ambiguous([row, replace(row, place="line 3"), replace(row, place="line 4", ann_ids=(7,))]))
    ["line 4: 'the cup' meant something else in line 2: say which"]
    """
    first: dict[tuple[str, str], ExpressionRow] = {}
    for row in rows:
        earlier = first.setdefault((row.image, row.expression.casefold()), row)
        if (earlier.ann_ids, earlier.mask) != (row.ann_ids, row.mask):
            yield f"{row.place}: {row.expression!r} meant something else in {earlier.place}: say which"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where one of the known names is close, or nothing.

    >>> did_you_mean("expresion", ["image", "expression"])
    "; did you mean 'expression'?"
    >>> did_you_mean("x", ["image"])
    ''
    """
    names = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name.casefold(), list(names), n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    document = read_json(path)
    if not isinstance(document, list):
        raise VLFormerError(
            f"{path} holds a {type(document).__name__}: it must be a list of objects, one per expression"
        )
    for number, fields in enumerate(document, 1):
        yield f"{path} row {number}", fields


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                yield place, json.loads(line)
            except json.JSONDecodeError as error:
                yield place, VLFormerError(f"{place} is not JSON ({error.msg}): write one object per line")
            except RecursionError:
                yield place, VLFormerError(f"{place} is nested too deeply to be read: write one object per line")


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _check_header(path, reader.fieldnames or [])
            for cells in reader:
                place = f"{path} line {reader.line_num}"
                if None in cells:
                    yield (
                        place,
                        VLFormerError(f"{place} has more cells than the header: put text with commas in quotes"),
                    )
                    continue
                filled = {name: cell.strip() for name, cell in cells.items() if cell is not None and cell.strip()}
                yield place, {**filled, **_csv_ids(filled)}
        except csv.Error as error:
            raise VLFormerError(f"{path} line {reader.line_num} is not CSV ({error}): check its quotes") from error


def _check_header(path: Path, names: Sequence[str]) -> None:
    if len(names) == 1 and (found := next((mark for mark in (";", "\t") if mark in names[0]), None)):
        raise VLFormerError(f"{path} line 1 has {found!r} between its columns: use commas")
    for name in names:
        _check_name(f"{path} line 1", name)
    if len(set(names)) != len(names):
        raise VLFormerError(f"{path} line 1 names a column twice ({', '.join(names)}): keep one of them")


def _check_name(place: str, name: str) -> None:
    if name == "":
        raise VLFormerError(f"{place} has a column without a name: remove it (pandas: to_csv(..., index=False))")
    if name not in FIELDS:
        hint = did_you_mean(name, FIELDS) or "; remove it"
        raise VLFormerError(f"{place} has an unknown field {name!r} (there are {', '.join(FIELDS)}){hint}")


def _csv_ids(cells: dict[str, str]) -> dict[str, Any]:
    """The ids of a row, as numbers where they are; a list may stand in brackets, as pandas writes it."""
    ids: dict[str, Any] = {}
    if "annotation_id" in cells:
        ids["annotation_id"] = _number(cells["annotation_id"])
    if "annotation_ids" in cells:
        parts = re.split(r"[\s;,]+", cells["annotation_ids"].strip("[]"))
        ids["annotation_ids"] = [_number(part) for part in parts if part]
    return ids


def _number(text: str) -> float | str:
    """A number, or the text where it is none."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def _row(place: str, fields: Any, default_split: str) -> ExpressionRow:
    if isinstance(fields, VLFormerError):
        raise fields
    if not isinstance(fields, dict):
        raise VLFormerError(f"{place} holds {str(fields)[:40]!r}: it must be an object with image and expression")
    for name in fields:
        _check_name(place, name)
    given = [name for name in ("annotation_id", "annotation_ids", "mask") if fields.get(name) is not None]
    if len(given) > 1:
        raise VLFormerError(f"{place} has both {given[0]} and {given[1]}: keep one of them")
    split = _text(place, fields, "split") or default_split
    if not _SPLIT.fullmatch(split):
        raise VLFormerError(f"{place} has the split {split!r}: use letters, digits, - and _")
    return ExpressionRow(
        place=place,
        image=_needed(place, fields, "image"),
        expression=_expression(place, fields),
        ann_ids=_ann_ids(place, fields),
        mask=_text(place, fields, "mask") or None,
        split=split,
        kind=_text(place, fields, "kind"),
    )


def _expression(place: str, fields: dict[str, Any]) -> str:
    text = " ".join(_needed(place, fields, "expression").split())
    if not has_words(text):
        raise VLFormerError(f"{place} has the expression {text!r} without a letter or a digit: give it words")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a JSON file may hold half of a surrogate pair, an emoji that was cut off
        near = text[max(0, error.start - 20) : error.start]
        raise VLFormerError(f"{place} has half a character after {near!r}: mend the text") from error
    return text


def _ann_ids(place: str, fields: dict[str, Any]) -> tuple[int, ...]:
    one, several = fields.get("annotation_id"), fields.get("annotation_ids")
    given = [one] if one is not None else [] if several is None else several
    numbers = [whole(value) for value in given] if isinstance(given, list) else [None]
    if None in numbers:
        shown = given[0] if isinstance(given, list) and len(given) == 1 else given
        raise VLFormerError(
            f"{place} has the annotation ids {shown!r}: give whole numbers, several of them as a list, and none where "
            "nothing in the image is meant"
        )
    return tuple(sorted({number for number in numbers if number is not None}))


def _text(place: str, fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise VLFormerError(f"{place} has the {name} {value!r}: it must be text")
    return (value or "").strip()


def _needed(place: str, fields: dict[str, Any], name: str) -> str:
    text = _text(place, fields, name)
    if not text:
        raise VLFormerError(f"{place} has no {name}: every row needs an image and an expression")
    return text
