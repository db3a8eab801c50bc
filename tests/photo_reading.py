"""Reads expressions about photographs again, from their words and the raw masks, with none of the package's code.

The reading is simple and literal: "left" is the object whose center lies farthest left among those of the noun. An
expression passes if exactly one object, the one it was made for, fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOUNS = {
    "dog": {"dog"},
    "cat": {"cat"},
    "kitty": {"cat"},
    "car": {"car"},
    "bicycle": {"bicycle"},
    "bike": {"bicycle", "motorcycle"},
    "motorcycle": {"motorcycle"},
    "motorbike": {"motorcycle"},
    "cup": {"cup"},
    "bottle": {"bottle"},
    "couch": {"couch"},
    "sofa": {"couch"},
    "elephant": {"elephant"},
    "animal": {"dog", "cat", "elephant"},
    "vehicle": {"car", "motorcycle"},
    **{noun: {"person"} for noun in ("person", "human", "individual", "someone")},
    **{noun: {"man"} for noun in ("man", "guy", "dude", "gentleman", "male")},
    **{noun: {"woman"} for noun in ("woman", "lady", "girl", "female", "chick")},
    **{noun: {"person"} for noun in ("biker", "motorcyclist", "cyclist")},
    "one": {"*"},
}
COLORS = {"red", "orange", "yellow", "green", "blue", "pink", "black", "white"}
OPENING = re.compile(r"^(find|select|where is|show me|click|segment|i want|look for|point to) ")
RANK = {"first": 1, "1st": 1, "second": 2, "2nd": 2, "third": 3, "3rd": 3, "fourth": 4, "4th": 4}
RELATIONS = (
    ("on", r"(?:riding|on) (?=(?:the |an? )?(?:\w+ )?(?:bicycle|bike|motorcycle|motorbike|couch|sofa|elephant)\b)"),
    ("closest", r"(?:closest to|nearest to|nearest|closest) (?=(?:the |an? )?\w)"),
    ("next", r"(?:next to|beside|by|near|close to) "),
    ("left", r"(?:to the left of|on the left of|to left of|on the left side of|left of) "),
    ("right", r"(?:to the right of|on the right of|to right of|on the right side of|right of) "),
    ("above", r"(?:above|over|higher than) "),
    ("below", r"(?:below|underneath|under|beneath|lower than) "),
    ("between", r"(?:in between|between) "),
)
SAME = 0.02  # of a side: nobody calls a smaller difference left or right
DEPTH_WORDS = re.compile(r"\b(us|camera|you|top|bottom|left|right)\b")


@dataclass(frozen=True)
class Shown:
    """One object as a reader sees it."""

    category: str
    mask_HW: NDArray[np.bool_]
    color: str = ""
    what: str = ""
    """man or woman, for people of whom it is known."""

    @property
    def center(self) -> tuple[float, float]:
        rows, columns = np.nonzero(self.mask_HW)
        return float(columns.mean()), float(rows.mean())

    @property
    def box(self) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero(self.mask_HW)
        return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def read(text: str, shown: list[Shown]) -> list[int]:
    """The objects that the text means."""
    text = re.sub(r"^(the|an?) ", "", OPENING.sub("", text))
    text = re.sub(r"\b(?:that|which) is ", "", text)
    for name, pattern in RELATIONS:
        parts = re.split(pattern, text, maxsplit=1)
        if len(parts) == 2 and parts[0].strip() and not DEPTH_WORDS.search(parts[1]):
            return _related(name, _group(parts[0], shown), _anchors(parts[1], shown), shown)
    return _placed(text, _group(text, shown), shown)


def _group(text: str, shown: list[Shown]) -> list[int]:
    """The objects with the noun and color of the text."""
    words = text.split()
    nouns = [word for word in words if word in NOUNS]
    assert nouns, f"no noun in {text!r}"
    found = []
    meant = NOUNS[nouns[0]]
    if "*" in meant:  # "the left one": of what covers most of the image
        areas = {one.category: sum(int(o.mask_HW.sum()) for o in shown if o.category == one.category) for one in shown}
        meant = {max(areas, key=lambda category: areas[category])}
    for number, one in enumerate(shown):
        fits = one.category in meant or (one.category == "person" and one.what in meant)
        colors = [word for word in words if word in COLORS]
        if fits and all(color == one.color for color in colors):
            found.append(number)
    return found


def _anchors(text: str, shown: list[Shown]) -> list[int]:
    anchors = []
    for part in text.split(" and "):
        found = _group(part, shown)
        assert len(found) == 1, f"{part!r} means {len(found)} objects"
        anchors += found
    return anchors


def _related(name: str, group: list[int], anchors: list[int], shown: list[Shown]) -> list[int]:
    group = [number for number in group if number not in anchors]
    spots = {number: shown[number].center for number in (*group, *anchors)}
    x, y = spots[anchors[0]]
    if name in ("closest", "next"):
        if name == "next" and len(group) > 1:
            group = sorted(group, key=lambda n: _gap(shown[n].box, shown[anchors[0]].box))[:1]
        return sorted(group, key=lambda n: np.hypot(spots[n][0] - x, spots[n][1] - y))[:1]
    if name == "on":
        return sorted(group, key=lambda n: _gap(shown[n].box, shown[anchors[0]].box))[:1]
    if name == "between":
        (ax, ay), (bx, by) = spots[anchors[0]], spots[anchors[1]]
        length = (bx - ax) ** 2 + (by - ay) ** 2
        inside = []
        for number in group:
            cx, cy = spots[number]
            along = ((cx - ax) * (bx - ax) + (cy - ay) * (by - ay)) / length
            aside = abs((cx - ax) * (by - ay) - (cy - ay) * (bx - ax)) / length
            if 0 < along < 1 and aside < 0.6:
                inside.append(number)
        return inside
    height, width = shown[0].mask_HW.shape
    dx, dy = SAME * width, SAME * height
    tests = {
        "left": lambda cx, cy: cx < x - dx,
        "right": lambda cx, cy: cx > x + dx,
        "above": lambda cx, cy: cy < y - dy,
        "below": lambda cx, cy: cy > y + dy,
    }
    return [number for number in group if tests[name](*spots[number])]


def _gap(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> float:
    dx = max(one[0] - two[2], two[0] - one[2], 0)
    dy = max(one[1] - two[3], two[1] - one[3], 0)
    return float(np.hypot(dx, dy))


def _placed(text: str, group: list[int], shown: list[Shown]) -> list[int]:
    """Those of the group that a place names; the whole group where there is none."""
    centers = {number: shown[number].center for number in group}
    rank = next((RANK[word] for word in text.split() if word in RANK), 0)
    sides = [side for side in ("left", "right", "top", "bottom") if _says(text, side)]
    if rank:
        return sorted(group, key=lambda n: _along(sides[-1], centers[n]))[rank - 1 : rank]
    if re.search(r"\b(cut off|partial|partially visible|half visible|partly out)\b", text):
        return [number for number in group if _touches_edge(shown[number])]
    if re.search(r"\b(middle|center)\b", text):
        return _middle(group, centers, shown[0].mask_HW.shape)
    if len(sides) == 2:
        height, width = shown[0].mask_HW.shape
        corner = (0 if "left" in sides else width, 0 if "top" in sides else height)
        return sorted(group, key=lambda n: np.hypot(centers[n][0] - corner[0], centers[n][1] - corner[1]))[:1]
    if sides:
        return sorted(group, key=lambda n: _along(sides[0], centers[n]))[:1]
    for pattern, key in EXTREMES:
        if re.search(pattern, text):
            return sorted(group, key=lambda n: key(shown[n]))[:1]
    return group


EXTREMES: tuple[tuple[str, Callable[[Shown], float]], ...] = (
    (r"\b(biggest|largest|bigger|big|large)\b", lambda one: -int(one.mask_HW.sum())),
    (r"\b(smallest|smaller|little|small|tiniest)\b", lambda one: int(one.mask_HW.sum())),
    (r"\b(front|foreground|closest|nearest)\b", lambda one: -one.box[3]),
    (r"\b(back|background|furthest|farthest|distance)\b", lambda one: one.box[3]),
)


def _middle(group: list[int], centers: dict[int, tuple[float, float]], size: tuple[int, ...]) -> list[int]:
    """The second of three, or else the most central."""
    if len(group) == 3:
        spread = [np.ptp([center[axis] for center in centers.values()]) for axis in (0, 1)]
        axis = 0 if spread[0] > spread[1] else 1
        return [sorted(group, key=lambda n: centers[n][axis])[1]]
    height, width = size
    return sorted(group, key=lambda n: np.hypot(centers[n][0] / width - 0.5, centers[n][1] / height - 0.5))[:1]


def _says(text: str, side: str) -> bool:
    words = {
        "left": r"\bleft(most)?\b",
        "right": r"\bright(most)?\b",
        "top": r"\b(top(most)?|upper|highest|up top)\b",
        "bottom": r"\b(bottom(most)?|lower|lowest)\b",
    }
    return re.search(words[side], text) is not None


def _along(side: str, center: tuple[float, float]) -> float:
    x, y = center
    return {"left": x, "right": -x, "top": y, "bottom": -y}[side]


def _touches_edge(one: Shown) -> bool:
    mask = one.mask_HW
    return bool(mask[:2].any() or mask[-2:].any() or mask[:, :2].any() or mask[:, -2:].any())
