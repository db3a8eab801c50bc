"""What stands where: kinds, looks and places of a scene's objects, chosen so that expressions need reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from vlformer_cli.data.scenes.objects import COLOURS, KINDS, PATTERNS, SIZES
from vlformer_cli.data.scenes.shapes import coin, u

T = TypeVar("T")
TRIES = 40


@dataclass(frozen=True, slots=True)
class Draft:
    """One object before it is drawn: looks, the longest side and the centre in pixels."""

    kind: str
    colour: str
    size: str
    pattern: str
    extent: float = 0.0
    x: float = 0.0
    y: float = 0.0


def pick(rng: Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def plan(rng: Generator, width: int, height: int, scenario: str) -> list[Draft]:
    """The drafts of one scene in the order of painting; fewer than wished where there is no room."""
    looks = _same_looks(rng) if scenario == "directions" else _mixed_looks(rng)
    drafts = place(rng, looks, width, height)
    if coin(rng, 0.65):
        return sorted(drafts, key=lambda d: d.y + d.extent / 2)
    return [drafts[i] for i in rng.permutation(len(drafts))]


def _pattern(rng: Generator, kind: str) -> str:
    return pick(rng, PATTERNS[1:]) if KINDS[kind].patterned and coin(rng, 0.45) else "plain"


def _size(rng: Generator, crowd: int) -> str:
    return "big" if coin(rng, 0.34 if crowd < 6 else 0.2) else pick(rng, ("small", "mid"))


def _same_looks(rng: Generator) -> list[Draft]:
    """Two to four objects of one kind, often alike in all but their places."""
    kind, count = pick(rng, list(KINDS)), int(rng.integers(2, 5))
    first = Draft(kind, pick(rng, list(COLOURS)), _size(rng, count), _pattern(rng, kind))
    if coin(rng, 0.6):
        return [first] * count
    return [replace(first, colour=pick(rng, list(COLOURS)), size=_size(rng, count)) for _ in range(count)]


def _mixed_looks(rng: Generator) -> list[Draft]:
    """A group of one kind, others that share its colours, sometimes a second group."""
    count = int(rng.choice([3, 4, 5, 6, 7, 8], p=[0.1, 0.18, 0.24, 0.22, 0.16, 0.1]))
    kinds = [str(k) for k in rng.permutation(list(KINDS))]
    group = min(int(rng.choice([2, 3, 4], p=[0.4, 0.4, 0.2])), count - 1)
    names = [kinds[0]] * group
    if count - group >= 2 and coin(rng, 0.55):
        names += [kinds[1]] * int(rng.integers(2, min(4, count - group + 1)))
    names += kinds[2 : 2 + count - len(names)]
    palette = [str(c) for c in rng.choice(list(COLOURS), size=int(rng.integers(2, 5)), replace=False)]
    looks = []
    for kind in names:
        colour = pick(rng, palette) if coin(rng, 0.85) else pick(rng, list(COLOURS))
        looks.append(Draft(kind, colour, _size(rng, count), _pattern(rng, kind)))
    return looks


def unit_of(width: int, height: int) -> float:
    """Pixels of a picture of this size for one of a picture of 192 pixels, which sizes are stated for."""
    return float((width * height) ** 0.5 / 192)


def own_scale(kind: str) -> float:
    """What sizes of this kind are multiplied by; 1 for kinds of photographs, which are not drawn."""
    return KINDS[kind].scale if kind in KINDS else 1.0


def place(rng: Generator, looks: list[Draft], width: int, height: int, around: Sequence[Draft] = ()) -> list[Draft]:
    """The group of the first kind scattered, in a row or in a column; some others deliberately overlapping.

    `around`: what is there already.
    """
    scale = unit_of(width, height)
    layout = pick(rng, ("scatter", "scatter", "row", "column"))
    crowding = pick(rng, (0.02, 0.1, 0.2))
    overlaps = 0 if coin(rng, 0.35) else int(rng.integers(1, 3))
    line = (u(rng, 0.25, 0.75) * width, u(rng, 0.25, 0.75) * height)
    placed = list(around)
    for look in looks:
        low, high = SIZES[look.size]
        draft = replace(look, extent=u(rng, low, high) * scale * own_scale(look.kind))
        near = bool(placed) and overlaps > 0 and coin(rng, 0.5)
        in_line = layout if look.kind == looks[0].kind else "scatter"
        spot = _find_spot(rng, draft, placed, (width, height), line, in_line, crowding, near)
        if spot is not None:
            overlaps -= near
            placed.append(spot)
    return placed[len(around) :]


def _find_spot(
    rng: Generator,
    draft: Draft,
    placed: list[Draft],
    canvas: tuple[int, int],
    line: tuple[float, float],
    layout: str,
    crowding: float,
    near: bool,
) -> Draft | None:
    for attempt in range(TRIES):
        half = draft.extent * 0.47
        x, y = u(rng, half, canvas[0] - half), u(rng, half, canvas[1] - half)
        if near and attempt < TRIES // 2:
            x, y = _beside(rng, pick(rng, placed), draft.extent)
        elif layout == "row":
            y = line[1] + u(rng, -0.06, 0.06) * canvas[1]
        elif layout == "column":
            x = line[0] + u(rng, -0.06, 0.06) * canvas[0]
        x, y = float(np.clip(x, half, canvas[0] - half)), float(np.clip(y, half, canvas[1] - half))
        spot = replace(draft, x=x, y=y)
        limit = 0.42 if near and attempt < TRIES // 2 else crowding
        if all(_overlap(spot, other) <= limit for other in placed):
            return spot
    return None


def _beside(rng: Generator, anchor: Draft, extent: float) -> tuple[float, float]:
    """A place that overlaps the anchor from some side."""
    reach, angle = (anchor.extent + extent) / 2 * u(rng, 0.5, 0.75), u(rng, 0, 2 * np.pi)
    return anchor.x + reach * float(np.cos(angle)), anchor.y + reach * float(np.sin(angle))


def _overlap(a: Draft, b: Draft) -> float:
    """Of the two boxes, as a fraction of the smaller one."""
    reach = (a.extent + b.extent) * 0.46
    dx, dy = reach - abs(a.x - b.x), reach - abs(a.y - b.y)
    least = min(a.extent, b.extent) * 0.92
    return 0.0 if dx <= 0 or dy <= 0 else min(dx, least) * min(dy, least) / least**2
