"""What an expression means, and which objects of a scene it is true of.

A meaning is resolved twice: strictly (a person would agree at once) and loosely (somebody might say so). An expression
is kept only where its referent satisfies the strict reading and no other object satisfies even the loose one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from vlformer_cli.data.scenes.objects import ALIKE, Scene, SceneObject

MARGIN = 0.085
"""Of width or height: the least difference between two centres that a person calls left, right, above or below."""
SLACK = 0.02
"""Of width or height: a difference that somebody might still call so."""
HIDDEN = 0.06
"""The least fraction of an object that another must hide to be in front of it."""

AXES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
"""A direction's axis (0 is x) and the sign that makes its extreme the smallest value."""
SIDES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}


@dataclass(frozen=True, slots=True)
class Looks:
    """A filter on looks; None lets everything pass. Of a thing in a photograph, looks may be unknown (empty)."""

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    pattern: str | None = None

    def accepts(self, thing: SceneObject, loose: bool) -> bool:
        """Whether the object has these looks; loosely, what is unknown and a colour easily mixed up pass too."""
        likely = ("",) if loose else ()
        return (
            self.kind in (None, thing.kind)
            and (self.size is None or thing.size in (self.size, *likely))
            and (self.pattern is None or thing.pattern in (self.pattern, *likely))
            and (self.colour is None or thing.colour in (self.colour, *likely) or (loose and self._alike(thing)))
        )

    def _alike(self, thing: SceneObject) -> bool:
        return frozenset({self.colour, thing.colour}) in ALIKE


@dataclass(frozen=True, slots=True)
class Place:
    """Where the referent stands in the group that the looks pick out."""

    form: str
    """far, side, corner, nth, middle, center, biggest or smallest."""
    directions: tuple[str, ...] = ()
    rank: int = 1


@dataclass(frozen=True, slots=True)
class Relation:
    """How the referent stands to one other object, or to two."""

    name: str
    """left of, right of, above, below, next to, closest to, behind, in front of or between."""
    anchors: tuple[Looks, ...]


@dataclass(frozen=True, slots=True)
class Meaning:
    """The looks of the referent, and at most one of a place and a relation."""

    looks: Looks
    place: Place | None = None
    relation: Relation | None = None


Unit: TypeAlias = tuple[float, float]


def centre(scene: Scene, index: int) -> Unit:
    """An object's centre as fractions of the picture."""
    thing = scene.objects[index]
    return thing.cx / scene.width, thing.cy / scene.height


def matching(looks: Looks, scene: Scene, loose: bool = False) -> list[int]:
    """The indices of the objects with these looks."""
    return [i for i, thing in enumerate(scene.objects) if looks.accepts(thing, loose)]


def holds(meaning: Meaning, scene: Scene, referent: int) -> bool:
    """True if the referent is clearly meant and no other object is, even loosely."""
    if not meaning.looks.accepts(scene.objects[referent], loose=False):
        return False
    group = matching(meaning.looks, scene, loose=True)
    clear = group == matching(meaning.looks, scene)  # nobody can doubt who belongs to the group
    if meaning.place is not None:
        clear = clear and set(group) <= set(scene.referents())  # a person counts what can be seen well
        return clear and _place_holds(meaning.place, scene, group, referent)
    if meaning.relation is not None:
        if meaning.relation.name == "closest to" and not clear:
            return False
        return _relation_holds(meaning.relation, scene, group, referent)
    return group == [referent]


def _place_holds(place: Place, scene: Scene, group: list[int], referent: int) -> bool:
    others = [i for i in group if i != referent]
    if not others:
        return False
    if place.form in ("biggest", "smallest"):
        return _extent_holds(place.form, scene, others, referent)
    here, there = centre(scene, referent), [centre(scene, i) for i in others]
    if place.form == "middle":
        return _middle_holds(here, there)
    if place.form == "center":
        return _off_center(here) < 0.16 and all(_off_center(spot) > 0.3 for spot in there)
    if place.form == "corner":
        return _corner_holds(place.directions, here, there)
    return _direction_holds(place, here, there)


def _off_center(spot: Unit) -> float:
    return math.hypot(spot[0] - 0.5, spot[1] - 0.5)


def _direction_holds(place: Place, here: Unit, there: list[Unit]) -> bool:
    """The extreme, the n-th from a side, or the one on a side: of two the outer one, of more the only one there."""
    axis, sign = AXES[place.directions[0]]
    ahead = [sign * (spot[axis] - here[axis]) for spot in there]
    if any(abs(step) < MARGIN for step in ahead):
        return False
    if place.form == "side" and len(there) > 1:
        depth = _depth(here, axis, sign)
        return depth < 0.4 and all(_depth(spot, axis, sign) > 0.5 for spot in there)
    return sum(step < 0 for step in ahead) == place.rank - 1


def _depth(spot: Unit, axis: int, sign: int) -> float:
    """The distance from the side that a direction names, as a fraction of the picture."""
    return spot[axis] if sign > 0 else 1 - spot[axis]


def _extent_holds(form: str, scene: Scene, others: list[int], referent: int) -> bool:
    extent = scene.objects[referent].extent
    ratios = [scene.objects[i].extent / extent for i in others]
    return all(r < 0.8 for r in ratios) if form == "biggest" else all(r > 1.25 for r in ratios)


def _corner_holds(directions: tuple[str, ...], here: Unit, there: list[Unit]) -> bool:
    axes = [AXES[direction] for direction in directions]
    if any(_depth(here, *axis) > 0.4 for axis in axes):
        return False
    return all(any(_depth(spot, *axis) > 0.52 for axis in axes) for spot in there)


def _middle_holds(here: Unit, there: list[Unit]) -> bool:
    """The second of three along the direction in which they spread the most."""
    if len(there) != 2:
        return False
    spread = [max(s[a] for s in (here, *there)) - min(s[a] for s in (here, *there)) for a in (0, 1)]
    axis = 0 if spread[0] > spread[1] else 1
    steps = sorted(spot[axis] - here[axis] for spot in there)
    return spread[axis] > 1.3 * spread[1 - axis] and steps[0] < -MARGIN and steps[1] > MARGIN


def anchors_of(relation: Relation, scene: Scene) -> list[int]:
    """The objects that a relation names beside the referent; one whose looks do not name exactly one is left out."""
    found = [(looks, matching(looks, scene, loose=True)) for looks in relation.anchors]
    return [some[0] for looks, some in found if len(some) == 1 and looks.accepts(scene.objects[some[0]], loose=False)]


def _relation_holds(relation: Relation, scene: Scene, group: list[int], referent: int) -> bool:
    anchors = anchors_of(relation, scene)
    if len(anchors) < len(relation.anchors) or referent in anchors:
        return False
    others = [i for i in group if i != referent and i not in anchors]
    if len(set(anchors)) != len(anchors):
        return False
    if relation.name == "closest to":
        return _closest(scene, others, referent, anchors[0])
    strict = _related(relation.name, scene, referent, anchors, loose=False)
    return strict and not any(_related(relation.name, scene, i, anchors, loose=True) for i in others)


def _closest(scene: Scene, others: list[int], referent: int, anchor: int) -> bool:
    reach = _distance(scene, referent, anchor)
    return bool(others) and all(
        _distance(scene, i, anchor) > 1.4 * reach and gap(scene, i, anchor) > gap(scene, referent, anchor) + 0.04
        for i in others
    )


def _related(name: str, scene: Scene, index: int, anchors: list[int], loose: bool) -> bool:
    if name == "between":
        return _between(scene, index, anchors, loose)
    if name == "next to":
        return gap(scene, index, anchors[0]) < (0.25 if loose else 0.06)
    if name in ("behind", "in front of"):
        back, front = (index, anchors[0]) if name == "behind" else (anchors[0], index)
        return dict(scene.objects[back].hidden_by).get(front, 0.0) > (0.0 if loose else HIDDEN)
    axis, sign = AXES[SIDES[name]]
    here, there = centre(scene, index), centre(scene, anchors[0])
    step, aside = sign * (there[axis] - here[axis]), abs(there[1 - axis] - here[1 - axis])
    return step > SLACK if loose else step > MARGIN and aside < 1.2 * step


def _between(scene: Scene, index: int, anchors: list[int], loose: bool) -> bool:
    here, one, two = (_pixels(scene, i) for i in (index, *anchors))
    across = (two[0] - one[0], two[1] - one[1])
    length = math.hypot(*across)
    step = (here[0] - one[0], here[1] - one[1])
    along = (step[0] * across[0] + step[1] * across[1]) / max(length, 1e-6) ** 2
    aside = abs(step[0] * across[1] - step[1] * across[0]) / max(length, 1e-6) ** 2
    return (0.0 < along < 1.0 and aside < 0.6) if loose else (0.25 < along < 0.75 and aside < 0.2)


def _pixels(scene: Scene, index: int) -> Unit:
    return scene.objects[index].cx, scene.objects[index].cy


def _distance(scene: Scene, one: int, two: int) -> float:
    (ax, ay), (bx, by) = _pixels(scene, one), _pixels(scene, two)
    return math.hypot(ax - bx, ay - by)


def gap(scene: Scene, one: int, two: int) -> float:
    """The distance between two boxes as a fraction of the longer side of the picture; 0 where they touch."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = scene.objects[one].bbox, scene.objects[two].bbox
    dx, dy = max(ax - bx - bw, bx - ax - aw, 0.0), max(ay - by - bh, by - ay - ah, 0.0)
    return math.hypot(dx, dy) / max(scene.width, scene.height)
