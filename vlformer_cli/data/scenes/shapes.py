"""The pen: tones, parts and the few primitives that every drawn kind is made of.

A kind is a list of parts in its own units (x to the right, y down), painted in order; the renderer scales the whole
to the object's size. A part has a tone, not a colour, so that one drawing serves every named colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points: TypeAlias = NDArray[np.float64]
XY: TypeAlias = tuple[float, float]

# Tones: HOLE makes transparent; BODY carries the colour and the pattern; the others are its shades or fixed colours.
HOLE, BODY, TRIM, LIGHT, INK, PALE, METAL, WOOD, LEAF, GLASS, FLAME = range(11)


class Part(NamedTuple):
    """One filled outline or one stroke."""

    tone: int
    points: Points
    """N2, in the units of the kind."""
    width: float = 0.0
    """Of the stroke, in the same units; 0 for a filled outline."""


Drawing: TypeAlias = Callable[[Generator], list[Part]]


class Kind(NamedTuple):
    """How objects of one kind are drawn."""

    draw: Drawing
    patterned: bool = True
    """False where a pattern could not be seen."""
    turn: float = 10.0
    """The largest rotation to either side, in degrees."""
    scale: float = 1.0
    """What the longest side is multiplied by: thin kinds are a little longer, so that they can be seen."""


def u(rng: Generator, low: float, high: float) -> float:
    """A uniform draw."""
    return low + (high - low) * float(rng.random())


def coin(rng: Generator, chance: float = 0.5) -> bool:
    """True with the given chance."""
    return float(rng.random()) < chance


def fill(tone: int, *points: XY) -> Part:
    """A polygon."""
    return Part(tone, np.array(points, dtype=np.float64))


def rect(tone: int, x0: float, y0: float, x1: float, y1: float) -> Part:
    """An upright rectangle."""
    return fill(tone, (x0, y0), (x1, y0), (x1, y1), (x0, y1))


def ring(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0, steps: int = 28) -> Points:
    """Points on an ellipse, clockwise on the screen from `start` to `end` degrees (0 is to the right)."""
    angle = np.deg2rad(np.linspace(start, end, steps))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def disc(tone: int, cx: float, cy: float, rx: float, ry: float | None = None) -> Part:
    """A filled ellipse."""
    return Part(tone, ring(cx, cy, rx, rx if ry is None else ry))


def wedge(tone: int, cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> Part:
    """The part of an ellipse that is cut off by the line between two of its points."""
    return Part(tone, ring(cx, cy, rx, ry, start, end))


def arc(tone: int, cx: float, cy: float, rx: float, ry: float, start: float, end: float, width: float) -> Part:
    """A stroke along an ellipse."""
    return Part(tone, ring(cx, cy, rx, ry, start, end), width)


def line(tone: int, width: float, *points: XY) -> Part:
    """A stroke along straight lines."""
    return Part(tone, np.array(points, dtype=np.float64), width)


def bend(points: Sequence[XY], steps: int = 6) -> Points:
    """A closed smooth curve (Catmull-Rom) through the points."""
    p1 = np.array(points, dtype=np.float64)[:, None]
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return np.asarray(curve.reshape(-1, 2))


def blob(tone: int, *points: XY) -> Part:
    """A smooth outline through the points."""
    return Part(tone, bend(points))


def mirrored(tone: int, *right: XY, smooth: bool = True) -> Part:
    """An outline that is the same on both sides: its right half is given, from the top to the bottom."""
    left = [(-x, y) for x, y in reversed(right) if x > 0]
    points = [*right, *left]
    return blob(tone, *points) if smooth else fill(tone, *points)


def soft_rect(tone: int, x0: float, y0: float, x1: float, y1: float, radius: float) -> Part:
    """A rectangle with round corners."""
    corners = [(x1, y1, 0.0), (x0, y1, 90.0), (x0, y0, 180.0), (x1, y0, 270.0)]
    mx, my = (x0 + x1) / 2, (y0 + y1) / 2
    arcs = [
        ring(x + radius * np.sign(mx - x), y + radius * np.sign(my - y), radius, radius, start, start + 90, 6)
        for x, y, start in corners
    ]
    return Part(tone, np.concatenate(arcs))
