"""Which expressions a scene gets: meanings are proposed at random, proved against the scene, and put into words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations

from numpy.random import Generator

from vlformer_cli.data.scenes.meaning import AXES, Looks, Meaning, Place, Relation, holds, matching
from vlformer_cli.data.scenes.objects import COLOURS, KINDS, Scene, SceneObject
from vlformer_cli.data.scenes.plan import pick
from vlformer_cli.data.scenes.shapes import coin
from vlformer_cli.data.scenes.words import say

LABELS = ("attribute", "location", "relation")
DRILLS = {"directions": ("location",), "near": ("relation",)}
"""Scenarios that teach one thing -> their labels."""
MOST = 9
"""Expressions in one scene that mean something."""
FEWEST = {"mix": 4, "directions": 4, "near": 3, "photos": 2}
"""By scenario: with fewer, a scene is drawn again."""
MOST_WITHOUT = 6
"""Expressions in one scene that mean nothing."""
OVERLAPS = (
    {"chair", "bench", "couch"},
    {"bird", "duck"},
    {"plate", "bowl", "fork", "knife", "spoon"},
    {"cup", "wine glass", "bowl"},
    {"bag", "backpack", "suitcase"},
    {"car", "truck", "bus"},
    {"plant", "flower", "tree", "vase"},
)
"""Kinds that somebody might call each other, or that come together: of these none is said not to be there."""
RELATIONS = ("left of", "right of", "above", "below", "next to", "next to", "closest to", "between")
NEAR = ("next to", "closest to")
"""Names of relations as often as they are tried."""
NOTHING = "nothing"
"""Their label."""
TRIES = 16


@dataclass(frozen=True, slots=True)
class Expression:
    """A text that is true of one object of the scene."""

    referent: int | None
    """Index in the scene's objects; None: it means none of them."""
    label: str
    """attribute, location, relation or nothing."""
    text: str
    meaning: Meaning


@dataclass(frozen=True, slots=True)
class Setting:
    """What is to be known of a scene, beside its objects, to speak of it."""

    scenario: str = "mix"
    kinds: tuple[str, ...] = field(default_factory=lambda: tuple(KINDS))
    """All that could be among the objects; what of it is not is known not to be in the picture."""
    on_photo: bool = False
    """More can be seen than is annotated: nothing is meant without its kind."""
    no_target: float = 0.0
    """Expressions that mean nothing, as a part of those that mean something."""


def write_expressions(rng: Generator, scene: Scene, setting: Setting) -> list[Expression]:
    """Up to nine expressions of the scene, as evenly spread over the labels as it allows, and some about nothing."""
    labels = DRILLS.get(setting.scenario, LABELS)
    repeats = 4 if setting.scenario in DRILLS else 2
    pools = {label: _pool(rng, scene, label, repeats, setting) for label in labels}
    wanted = int(rng.integers(6, MOST + 1))
    chosen: list[Expression] = []
    while len(chosen) < wanted and any(pools.values()):
        for label in [labels[i] for i in rng.permutation(len(labels))]:
            if pools[label] and len(chosen) < wanted:
                chosen.append(pools[label].pop())
    kept = _distinct(chosen)
    if setting.no_target > 0:
        kept += _about_nothing(rng, scene, setting, int(rng.binomial(len(kept), setting.no_target)))
    return kept


def _about_nothing(rng: Generator, scene: Scene, setting: Setting, count: int) -> list[Expression]:
    """Expressions that come near to what is there and are true of none of it, not even loosely."""
    found: dict[str, Expression] = {}
    there = {thing.kind for thing in scene.objects}
    near = set().union(*(some for some in OVERLAPS if some & there)) - there
    for _ in range(TRIES * count):
        if len(found) >= min(count, MOST_WITHOUT):
            break
        thing = pick(rng, scene.objects)
        other = pick(rng, setting.kinds)
        if other in near:
            continue
        looks = Looks(other, thing.colour or None) if coin(rng) else Looks(other)
        if thing.colour and not setting.on_photo and coin(rng):
            looks = Looks(thing.kind, pick(rng, list(COLOURS)))
        if matching(looks, scene, loose=True):
            continue
        side = Place(pick(rng, ("far", "side")), (pick(rng, list(AXES)),)) if coin(rng, 0.2) else None
        meaning = Meaning(looks, side)
        text = say(rng, meaning, 0)
        found.setdefault(text, Expression(None, NOTHING, text, meaning))
    return list(found.values())


def _distinct(expressions: list[Expression]) -> list[Expression]:
    """At most four for an object, none twice."""
    kept: dict[str, Expression] = {}
    for expression in expressions:
        if sum(e.referent == expression.referent for e in kept.values()) < 4:
            kept.setdefault(expression.text, expression)
    return sorted(kept.values(), key=lambda e: e.referent or 0)


def _pool(rng: Generator, scene: Scene, label: str, repeats: int, setting: Setting) -> list[Expression]:
    """Expressions of one label, at most `repeats` for an object, the best spread last (it is popped first)."""
    rounds: list[list[Expression]] = [[] for _ in range(repeats)]
    for referent in scene.referents():
        meanings: list[Meaning] = []
        for _ in range(repeats):
            meaning = _propose(rng, scene, referent, label, setting)
            if meaning is not None and meaning not in meanings:
                meanings.append(meaning)
        for turn, meaning in enumerate(meanings):
            family = _family(scene, referent)
            rounds[turn].append(Expression(referent, label, say(rng, meaning, family), meaning))
    return [turn[i] for turn in reversed(rounds) for i in rng.permutation(len(turn))]


def _family(scene: Scene, referent: int) -> int:
    """The number of objects of its kind; 0 where some of them are hardly seen, so that a person might count others."""
    kind = matching(Looks(scene.objects[referent].kind), scene)
    return len(kind) if set(kind) <= set(scene.referents()) else 0


def _propose(rng: Generator, scene: Scene, referent: int, label: str, setting: Setting) -> Meaning | None:
    if label == "attribute":
        return _attribute(rng, scene, referent, setting)
    for _ in range(TRIES):
        meaning = (
            _location(rng, scene, referent, setting.scenario)
            if label == "location"
            else _relation(rng, scene, referent, NEAR if setting.scenario == "near" else RELATIONS)
        )
        if meaning is not None and setting.on_photo and meaning.looks.kind is None:
            continue
        if meaning is not None and holds(meaning, scene, referent):
            return meaning
    return None


def _features(rng: Generator, thing: SceneObject) -> dict[str, str]:
    """What may be said of an object beside its kind."""
    said = {"colour": thing.colour} if thing.colour else {}
    if thing.size not in ("mid", ""):
        said["size"] = thing.size
    if thing.pattern and (thing.pattern != "plain" or (KINDS[thing.kind].patterned and coin(rng, 0.25))):
        said["pattern"] = thing.pattern
    return said


def _attribute(rng: Generator, scene: Scene, referent: int, setting: Setting) -> Meaning | None:
    """Looks that only the referent has: usually as few words as will do, sometimes more."""
    thing, of_photos = scene.objects[referent], setting.scenario == "photos"
    if not of_photos and not any(
        o is not thing and (o.kind == thing.kind or o.colour == thing.colour) for o in scene.objects
    ):
        return None
    if coin(rng, 0.25):
        meaning = Meaning(Looks(thing.kind), Place(pick(rng, ("biggest", "smallest"))))
        if holds(meaning, scene, referent):
            return meaning
    said = _features(rng, thing)
    subsets = [keys for count in range(len(said) + 1) for keys in combinations(said, count)]
    options = [
        Looks(thing.kind, **{k: said[k] for k in keys})
        for keys in subsets
        if keys or coin(rng, 0.8 if of_photos else 0.3)
    ]
    if coin(rng, 0.3) and not setting.on_photo:
        options = [
            replace(looks, kind=None) for looks in options if looks.size is None and (looks.colour or looks.pattern)
        ] + options
    true = [looks for looks in options if holds(Meaning(looks), scene, referent)]
    if not true:
        return None
    return Meaning(true[0] if coin(rng, 0.6) else pick(rng, true))


def _location(rng: Generator, scene: Scene, referent: int, scenario: str) -> Meaning | None:
    thing = scene.objects[referent]
    looks = Looks(thing.kind)
    if scenario != "directions":
        looks = pick(
            rng,
            (
                looks,
                looks,
                looks,
                replace(looks, colour=thing.colour or None),
                Looks(colour=thing.colour or None),
                Looks(),
                _dressed(rng, thing),
            ),
        )
    group = len(matching(looks, scene))
    forms = (
        ["far", "side", "side", "corner", "middle", "center"]
        + ["nth", "nth"] * (group >= 3)
        + ["nth"] * (group >= 2 and coin(rng, 0.2))
    )
    form = pick(rng, forms)
    if looks.kind is None and form in ("nth", "middle") and looks.colour is None:
        return None
    if form in ("middle", "center"):
        return Meaning(looks, Place(form))
    if form == "corner":
        return Meaning(looks, Place(form, (pick(rng, ("top", "bottom")), pick(rng, ("left", "right")))))
    rank = int(rng.integers(1, min(group, 4) + 1)) if form == "nth" else 1
    return Meaning(looks, Place(form, (pick(rng, list(AXES)),), rank))


def _dressed(rng: Generator, thing: SceneObject) -> Looks:
    """The kind with one of its features."""
    said = _features(rng, thing)
    name = pick(rng, list(said)) if said else "colour"
    return Looks(thing.kind, **{name: said.get(name)})


def _relation(rng: Generator, scene: Scene, referent: int, names: tuple[str, ...]) -> Meaning | None:
    thing = scene.objects[referent]
    kind = Looks(thing.kind)
    looks = pick(rng, (kind, kind, kind, kind, Looks(), Looks(colour=thing.colour or None), _dressed(rng, thing)))
    if len(matching(looks, scene)) == 1 and coin(rng, 0.9):
        return None
    others = [i for i in range(len(scene.objects)) if i != referent]
    name = pick(rng, names)
    if coin(rng, 0.45):
        name, others = _overlapping(rng, scene, referent, others, name)
    if len(others) < (2 if name == "between" else 1):
        return None
    spots = [others[i] for i in rng.permutation(len(others))[: 2 if name == "between" else 1]]
    anchors = [_unique_looks(rng, scene, spot) for spot in spots]
    named = tuple(looks for looks in anchors if looks is not None)
    return Meaning(looks, relation=Relation(name, named)) if len(named) == len(spots) else None


def _overlapping(rng: Generator, scene: Scene, referent: int, others: list[int], name: str) -> tuple[str, list[int]]:
    """Behind or in front of one of the objects that the referent overlaps, if it does overlap any."""
    behind = [j for j, _ in scene.objects[referent].hidden_by]
    before = [j for j in others if referent in dict(scene.objects[j].hidden_by)]
    if behind and (not before or coin(rng)):
        return "behind", behind
    return ("in front of", before) if before else (name, others)


def _unique_looks(rng: Generator, scene: Scene, index: int) -> Looks | None:
    """Looks that name an anchor, the shortest first."""
    thing = scene.objects[index]
    said = _features(rng, thing)
    options = [Looks(thing.kind), *(Looks(thing.kind, **{k: v}) for k, v in said.items()), Looks(thing.kind, **said)]
    if coin(rng, 0.15):
        options = options[1:]
    return next((looks for looks in options if holds(Meaning(looks), scene, index)), None)
