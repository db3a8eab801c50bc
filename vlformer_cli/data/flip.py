"""Mirroring a picture turns "left" into "right": the words are swapped, or the picture is left as it is."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from vlformer_cli.types import ImageGroup

_PAIRS = (
    ("left", "right"),
    ("leftmost", "rightmost"),
    ("leftest", "rightest"),
    ("lefthand", "righthand"),
    ("leftward", "rightward"),
    ("leftwards", "rightwards"),
    ("leftside", "rightside"),
    ("lefty", "righty"),
    ("lhs", "rhs"),
)
SWAPS = dict(_PAIRS) | {right: left for left, right in _PAIRS}

UNSWAPPABLE = re.compile(
    r"^(l|r|lt|rt|lft|lef|letf|leftt|rgt|rght|rigt|rigth|rihgt|righ|rite|clockwise|counterclockwise|anticlockwise|"
    r"o'?clock|east|west|eastern|western|port|starboard|driver'?s?|passenger'?s?)$"
)
"""Sides by another name, abbreviated or misspelt: an expression with one of these is never mirrored."""

HARMLESS = re.compile(
    r"^(bright\w*|upright\w*|outright|copyright\w*|fright\w*|cleft\w*|wright\w*|playwright\w*|aright)$"
)
"""Words that hold "left" or "right" and mean no side."""

NO_SIDE = re.compile(
    r"\bright (about|above|after|against|ahead|along|angle|at|away|before|behind|below|beneath|beside|between|by|"
    r"down|here|in|inside|near|next|now|off|on|out|outside|over|there|through|under|up|way)\b|"
    r"\b(all|alright|is|what's|whats|are|one|only|just) left\b(?! (side|hand|of|corner|part|half|most|one))|"
    r"\bwhat('?s| is) left\b|\bleft over\b|\ball right\b",
    re.IGNORECASE,
)
"""Phrases in which "left" means what remains and "right" means exactly, or may: "right behind the man"."""

_WORD = re.compile(r"[A-Za-z']+")


def mirrored(expression: str) -> str | None:
    """What the expression is in the mirrored picture; None where a word may name a side and cannot be swapped.

    >>> mirrored("Left-hand cup, right of the bright lamp"), mirrored("the leftover cake"), mirrored("red cup")
    ('Right-hand cup, left of the bright lamp', None, 'red cup')
    """
    if NO_SIDE.search(expression) or any(_is_unsure(word) for word in _WORD.findall(expression)):
        return None
    return _WORD.sub(lambda match: _swapped(match[0]), expression)


def _is_unsure(word: str) -> bool:
    lower = word.lower().strip("'")
    if UNSWAPPABLE.match(lower):
        return True
    holds_side = "left" in lower or "right" in lower
    return holds_side and lower not in SWAPS and not HARMLESS.match(lower)


def _swapped(word: str) -> str:
    other = SWAPS.get(word.lower())
    if other is None:
        return word
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def mirror_group(group: ImageGroup) -> ImageGroup | None:
    """The mirrored picture and masks with their expressions; None unless every expression can be mirrored."""
    swapped = [mirrored(sample.expression) for sample in group.samples]
    samples = tuple(
        replace(sample, expression=words)
        for sample, words in zip(group.samples, swapped, strict=True)
        if words is not None
    )
    if len(samples) < len(group.samples):
        return None
    image_HW3, mask_NHW = group.image_HW3[:, ::-1], group.mask_NHW[:, :, ::-1]
    anchor_NHW = None if group.anchor_NHW is None else np.ascontiguousarray(group.anchor_NHW[:, :, ::-1])
    return ImageGroup(np.ascontiguousarray(image_HW3), np.ascontiguousarray(mask_NHW), samples, anchor_NHW)
