"""What is true of the objects of an image, and the proof that an expression means one of them alone.

Geometry and margins are those of drawn scenes (`scenes.meaning`): a meaning must hold clearly of its referent and must
not hold of any other object even on a loose reading. What is unknown of an object counts as possible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from vlformer_cli.data.photos.names import CARRIED, CLOTHES, WORN, categories_called
from vlformer_cli.data.photos.objects import LabelledImage, Seen, extent
from vlformer_cli.data.scenes.meaning import Looks, Meaning, Place, Relation, anchors_of, gap, holds, matching
from vlformer_cli.data.scenes.objects import ALIKE, MIN_AREA, Scene, SceneObject

DEPTHS = ("front", "back")
CONTACTS = ("on", "with")
TOUCH = 0.015
"""Of the longer side: objects whose outlines come as near touch each other."""
APART = 0.05
"""Of the longer side: boxes farther apart than this surely do not touch."""
SIZES = ("biggest", "smallest")
SIZE_AREA = 1.3
"""How many times the area of any other the biggest object covers."""
DEPTH_MARGIN = 0.08
"""Of the height: how much lower the feet of the nearest object stand than those of any other of its name."""
DEPTH_AREA = 1.4
"""How many times the area of any other the nearest object covers."""
ALIKE_PEOPLE = (
    *(frozenset(pair) for pair in (("man", "boy"), ("woman", "girl"), ("boy", "child"), ("girl", "child"))),
    *(frozenset(pair) for pair in (("boy", "girl"), ("man", "child"), ("woman", "child"))),
)
"""Pairs of nouns that may both be said of one person, or may be mixed up."""
EDGE = 2
"""Pixels: an outline that comes as near to the edge of the image is cut off by it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that is said of an object beside its name, color and place."""

    kind: str
    """noun, chest, garment, carried or cut off."""
    value: str = ""
    """The noun, or the color."""
    garment: str = ""


class Facts:
    """An image's objects as a scene in which meanings are proved."""

    def __init__(self, image: LabelledImage) -> None:
        self.image = image
        self.height, self.width = image.size
        self.objects = image.objects
        self._things = [_thing(one) for one in image.objects]
        self._scenes: dict[tuple[tuple[str, ...], tuple[Claim, ...]], Scene] = {}

    @cached_property
    def referents(self) -> list[int]:
        """The objects that are seen well enough to be meant."""
        floor = MIN_AREA * max(self.width, self.height) ** 2
        return [
            number
            for number, (one, thing) in enumerate(zip(self.objects, self._things, strict=True))
            if not one.is_group and not one.is_box and thing.area >= floor and thing.visible >= 0.45
        ]

    def is_known(self, name: str, category: str | None = None) -> bool:
        """Whether every object that `name` may mean is annotated. `category`: of the object that is meant.

        Clothes are annotated as a whole outfit, so that there the category itself is enough.
        """
        called = categories_called(name)
        needed = called - CLOTHES | {category} if category in CLOTHES and category is not None else called
        if any(one.is_group and one.category in called for one in self.objects):
            return False
        return all(self._is_labelled(one) for one in needed)

    def _is_labelled(self, category: str) -> bool:
        labelled = self.image.labelled
        return category in labelled or (category == "coffee mug" and "cup" in labelled)

    def called(self, name: str) -> list[int]:
        """The objects that the name may mean."""
        categories = categories_called(name)
        return [number for number, one in enumerate(self.objects) if one.category in categories]

    def truth(self, claim: Claim, number: int) -> bool | None:
        """Whether a claim is true of an object; None where that is not known."""
        one = self.objects[number]
        if claim.kind == "cut off":
            return self._is_cut_off(number)
        if claim.kind == "noun":
            return _same(claim.value, one.noun, ALIKE_PEOPLE)
        if claim.kind == "chest":
            return _same(claim.value, _chest_of(one), ALIKE)
        return _wears(one, claim)

    def _is_cut_off(self, number: int) -> bool | None:
        """None for an object that comes near an edge."""
        x, y, width, height = self._things[number].bbox
        nearest = min(x, y, self.width - x - width, self.height - y - height)
        return True if nearest < EDGE else None if nearest < 3 * EDGE else False

    def scene(self, names: tuple[str, ...], claims: tuple[Claim, ...] = ()) -> Scene:
        """The objects under the given names; whether the claims are true of them stands in `pattern`."""
        if (names, claims) not in self._scenes:
            self._scenes[names, claims] = self._scene(names, claims)
        return self._scenes[names, claims]

    def _scene(self, names: tuple[str, ...], claims: tuple[Claim, ...]) -> Scene:
        things = []
        for number, (one, thing) in enumerate(zip(self.objects, self._things, strict=True)):
            kind = next((name for name in names if one.category in categories_called(name)), f"={one.category}")
            kind = kind if thing.area else "=hidden"
            pattern = self._pattern(claims, number) if claims and kind == names[0] else "no"
            things.append(replace(thing, kind=kind, pattern=pattern))
        return Scene(0, self.width, self.height, tuple(things))

    def _pattern(self, claims: tuple[Claim, ...], number: int) -> str:
        truths = [self.truth(claim, number) for claim in claims]
        if all(truths):
            return "yes"
        return "no" if False in truths else ""

    def proves(self, meaning: Meaning, referent: int, claims: tuple[Claim, ...] = ()) -> bool:
        """Whether the meaning is clearly true of the referent and of no other object."""
        names = (
            meaning.looks.kind or "",
            *(a.kind or "" for a in (meaning.relation.anchors if meaning.relation else ())),
        )
        if len(names) > 1 and categories_called(names[0]) & frozenset().union(*map(categories_called, names[1:])):
            return False
        looks = replace(meaning.looks, pattern="yes") if claims else meaning.looks
        scene = self.scene(names, claims)
        if meaning.relation is not None and meaning.relation.name in CONTACTS:
            return self._contact_holds(meaning.relation, scene, looks, referent)
        if meaning.place is not None and meaning.place.form in DEPTHS:
            return self._depth_holds(meaning.place, scene, looks, referent)
        if (
            meaning.place is not None
            and meaning.place.form in SIZES
            and not _size_holds(meaning.place.form, scene, matching(looks, scene, loose=True), referent)
        ):
            return False
        return holds(replace(meaning, looks=looks), scene, referent)

    def _contact_holds(self, relation: Relation, scene: Scene, looks: Looks, referent: int) -> bool:
        """The referent touches the one object that is named, and no other of the group comes near it."""
        anchors = anchors_of(relation, scene)
        if len(anchors) != 1 or anchors[0] == referent or not looks.accepts(scene.objects[referent], loose=False):
            return False
        others = [n for n in matching(looks, scene, loose=True) if n not in (referent, anchors[0])]
        if any(gap(scene, n, anchors[0]) < APART for n in others):
            return False
        here, there = scene.objects[referent], scene.objects[anchors[0]]
        if not self._touch(referent, anchors[0]):
            return False
        overlap = min(here.bbox[0] + here.bbox[2], there.bbox[0] + there.bbox[2]) - max(here.bbox[0], there.bbox[0])
        if overlap < 0.5 * min(here.bbox[2], there.bbox[2]):
            return False
        return relation.name == "with" or there.cy - here.cy > 0.2 * here.bbox[3]

    def _touch(self, one: int, two: int) -> bool:
        radius = max(1, round(TOUCH * max(self.height, self.width)))
        kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
        near_HW = cv2.dilate(self.objects[one].mask_HW.view(np.uint8), kernel)
        return bool((near_HW[self.objects[two].mask_HW]).any())

    def _depth_holds(self, place: Place, scene: Scene, looks: Looks, referent: int) -> bool:
        """The nearest object stands lowest and is largest, the farthest stands highest and is smallest."""
        group = matching(looks, scene, loose=True)
        if referent not in group or group != matching(looks, scene) or not set(group) <= set(scene.referents()):
            return False
        here, sign = scene.objects[referent], 1 if place.form == "front" else -1
        for other in (scene.objects[number] for number in group if number != referent):
            lower = sign * (_feet(here) - _feet(other)) / self.height
            ratio = (here.area / other.area) ** sign
            if lower < DEPTH_MARGIN or ratio < DEPTH_AREA:
                return False
        return len(group) > 1


def _size_holds(form: str, scene: Scene, group: list[int], referent: int) -> bool:
    """Whether the area tells as clearly as the extent, which `holds` looks at, which object is larger."""
    here = scene.objects[referent].area
    others = [scene.objects[number].area for number in group if number != referent]
    if form == "biggest":
        return all(here > SIZE_AREA * area for area in others)
    return all(area > SIZE_AREA * here for area in others)


def _feet(thing: SceneObject) -> float:
    return thing.bbox[1] + thing.bbox[3]


def _thing(one: Seen) -> SceneObject:
    seen = extent(one.mask_HW)
    if seen is None:
        return SceneObject(one.category, "", "", "", 1.0, -1e6, -1e6, (-1e6, -1e6, 0.0, 0.0), 0, 0, 1, ())
    x, y = float(seen[0]), float(seen[1])
    width, height = seen[2] - x, seen[3] - y
    area = int(np.count_nonzero(one.mask_HW))
    in_column, in_row = one.mask_HW.sum(0), one.mask_HW.sum(1)
    cx = float((in_column * np.arange(len(in_column))).sum() / area)
    cy = float((in_row * np.arange(len(in_row))).sum() / area)
    full = max(round(one.full_area), area)
    return SceneObject(
        one.category, one.color, "", "", max(width, height), cx, cy, (x, y, width, height), 0, area, full, ()
    )


def _same(said: str, known: str, alike: tuple[frozenset[str], ...]) -> bool | None:
    if not known:
        return None
    if said == known:
        return True
    return None if frozenset({said, known}) in alike else False


def _chest_of(one: Seen) -> str:
    """The color of the upper body: of the outermost garment there is, or as it was measured."""
    if one.clothes is None:
        return one.chest
    worn = {garment.category: garment.color for garment in one.clothes}
    for category in ("coat", "jacket", "blazer", "cape", "cardigan", "vest"):
        if category in worn:
            return worn[category]
    uppers = (
        "dress",
        "suit",
        "sweater",
        "sweatshirt",
        "hoodie",
        "jumper",
        "shirt",
        "blouse",
        "t-shirt",
        "top",
        "romper",
    )
    return next((worn[category] for category in uppers if category in worn), "")


def _wears(one: Seen, claim: Claim) -> bool | None:
    """A garment of a color, which another garment of the kind may be taken for."""
    if one.clothes is None:
        return None if one.category == "person" else False
    group = WORN if claim.kind == "garment" else CARRIED
    similar = [
        garment for garment in one.clothes if garment.category in group and _is_similar(garment.category, claim.garment)
    ]
    truths = [_same(claim.value, garment.color, ALIKE) if claim.value else True for garment in similar]
    exact = [g.category == claim.garment for g in similar]
    if any(truth and same for truth, same in zip(truths, exact, strict=True)):
        return True
    return None if any(truth is not False for truth in truths) else False


def _is_similar(one: str, two: str) -> bool:
    """Whether people might call both garments by one word."""
    return one == two or any(one in group and two in group for group in _SIMILAR)


_SIMILAR = (
    frozenset(
        {"coat", "jacket", "blazer", "cape", "cardigan", "vest", "suit", "sweater", "jumper", "sweatshirt", "hoodie"}
    ),
    frozenset({"shirt", "blouse", "t-shirt", "top", "sweater", "jumper", "sweatshirt", "hoodie", "cardigan", "vest"}),
    frozenset({"pants", "jeans", "leggings", "tights", "stockings", "shorts"}),
    frozenset({"dress", "skirt", "romper"}),
    frozenset({"shoes", "boots", "sandals", "loafers", "heels", "sneakers", "pumps", "flats", "wedges"}),
    frozenset({"bag", "purse", "wallet"}),
    frozenset({"socks", "stockings", "tights", "leggings"}),
)
