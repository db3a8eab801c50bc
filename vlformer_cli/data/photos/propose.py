"""Which expressions an image gets: meanings are proposed at random, proved, and put into words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from numpy.random import Generator

from vlformer_cli.data.photos.facts import DEPTHS, Claim, Facts
from vlformer_cli.data.photos.names import CLOTHES, NEVER_NAMED, PLURAL, names_of
from vlformer_cli.data.photos.naming import (
    Proposed,
    choose_name,
    clothes_of,
    name_anchor,
    noun_of,
    say_contact,
    told_by,
)
from vlformer_cli.data.photos.no_target import no_target_text
from vlformer_cli.data.photos.words import Said, say, say_all, slip, with_article
from vlformer_cli.data.scenes.meaning import AXES, Looks, Meaning, Place, Relation
from vlformer_cli.data.scenes.plan import pick
from vlformer_cli.data.scenes.shapes import coin

TRIES = 14
"""Proposals for one object and label before it goes without."""
RELATION_TRIES = 40
SHARES = {"category": 0.22, "attribute": 0.2, "location": 0.3, "relation": 0.14, "caption": 0.14}
"""How often an expression of each label is wanted."""
UNIONS = 0.25
"""The chance that an image in which a name means several objects gets an expression for all of them."""
NEAR = ("left of", "right of", "above", "below", "next to", "closest to")


@dataclass(frozen=True, slots=True)
class Expression:
    """A text with the objects that it means: one, several at once, or none."""

    referents: tuple[int, ...]
    label: str
    """category, attribute, location, relation, caption, union or no-target."""
    text: str
    anchors: tuple[int, ...] | None = ()
    """The objects that it names beside them; None where that is not known."""


def write_expressions(rng: Generator, facts: Facts, *, most: int, no_target: float) -> list[Expression]:
    """Up to `most` expressions, no text twice; about `no_target` more of them, per expression, that mean nothing."""
    found: list[Expression] = []
    texts: set[str] = set()
    referents = [number for number in facts.referents if facts.objects[number].category not in NEVER_NAMED]
    labels, shares = list(SHARES), list(SHARES.values())
    for _ in range(3 * most):
        if len(found) >= most or not referents:
            break
        label = str(rng.choice(labels, p=[share / sum(shares) for share in shares]))
        referent = pick(rng, referents)
        if label == "category" and sum(e.label == label and e.referents == (referent,) for e in found) > 1:
            continue
        expression = _propose(rng, facts, referent, label)
        if expression is not None and expression.text not in texts:
            texts.add(expression.text)
            found.append(expression)
    if coin(rng, UNIONS):
        found += [e for e in (_union(rng, facts),) if e is not None and e.text not in texts]
    wanted = len(found) * no_target
    for _ in range(int(wanted) + coin(rng, wanted % 1)):
        text = next((text for text in (no_target_text(rng, facts) for _ in range(4)) if text is not None), None)
        if text is not None and text not in texts:
            texts.add(text)
            found.append(Expression((), "no-target", text))
    return found


def _propose(rng: Generator, facts: Facts, referent: int, label: str) -> Expression | None:
    if label == "caption":
        return _from_caption(rng, facts, referent)
    makers = {"category": _category, "attribute": _attribute, "location": _location, "relation": _relation}
    for _ in range(RELATION_TRIES if label == "relation" else TRIES):
        name = choose_name(rng, facts, referent)
        if name is None:
            return None
        proposed = makers[label](rng, facts, referent, name)
        if proposed is not None:
            text, anchors = proposed
            return Expression((referent,), label, text, anchors)
    return None


def _category(rng: Generator, facts: Facts, referent: int, name: str) -> Proposed | None:
    known = facts.objects[referent].noun
    noun = noun_of(rng, facts, referent, name)
    if not facts.proves(Meaning(Looks(name)), referent):
        claims = told_by(noun, known)
        if not claims or not facts.proves(Meaning(Looks(name)), referent, claims):
            return None
    return say(rng, Said(noun)), ()


def _attribute(rng: Generator, facts: Facts, referent: int, name: str) -> Proposed | None:
    one = facts.objects[referent]
    noun = noun_of(rng, facts, referent, name)
    told = told_by(noun, one.noun)
    if coin(rng, 0.2):
        place = Place(pick(rng, ("biggest", "smallest")))
        if facts.proves(Meaning(Looks(name), place), referent):
            return say(rng, Said(noun, place=place, pair=len(facts.called(name)) == 2)), ()
    color = one.color if name != "person" else ""
    claims = clothes_of(rng, facts, referent) if one.category == "person" else ()
    if (
        claims
        and claims[0].kind == "chest"
        and coin(rng, 0.15)
        and facts.proves(Meaning(Looks(name)), referent, claims)
    ):
        return say(rng, Said("shirt", claims[0].value)), ()  # RefCOCO+ names people by their clothes
    if not claims and coin(rng, 0.1) and facts.truth(Claim("cut off"), referent):
        claims = (Claim("cut off"),)
    if not color and not claims:
        return None
    looks = Looks(name, color or None)
    for proof in (claims, (*told, *claims)):
        if facts.proves(Meaning(looks), referent, proof):
            return say(rng, Said(noun, color, claims)), ()
    return None


def _location(rng: Generator, facts: Facts, referent: int, name: str) -> Proposed | None:
    one = facts.objects[referent]
    noun = noun_of(rng, facts, referent, name)
    color = one.color if coin(rng, 0.2) and one.category != "person" else ""
    group = len(facts.called(name))
    if group == 1:
        return _alone_somewhere(rng, facts, referent, name, noun)
    place = _place(rng, group)
    extra: tuple[Claim, ...] = ()
    proof: tuple[Claim, ...] = ()
    if one.category == "person" and coin(rng, 0.25):
        extra = clothes_of(rng, facts, referent)
    if place.form in ("nth", "middle"):  # others of another noun would be counted too
        proof = told_by(noun, one.noun)
    if not facts.proves(Meaning(Looks(name, color or None), place), referent, proof):
        return None
    if len(extra) and facts.truth(extra[0], referent) is not True:
        return None
    if coin(rng, 0.07) and not color and _stands_out(facts, name):
        noun = "one"
    return say(rng, Said(noun, color, extra, place, pair=group == 2)), ()


def _stands_out(facts: Facts, name: str) -> bool:
    """Whether the objects of a name cover more of the image than all others, so that the name may be left out."""
    called = set(facts.called(name))
    areas = [int(one.mask_HW.sum()) for one in facts.objects]
    return sum(areas[n] for n in called) > 2 * sum(area for n, area in enumerate(areas) if n not in called)


def _place(rng: Generator, group: int) -> Place:
    forms = ["side"] * 6 + ["far"] * 2 + ["corner"] * 2 + ["front", "back"] * 2 + ["middle"] * (2 * (group == 3))
    form = pick(rng, forms + ["nth"] * (4 * (group >= 3)) + ["center"] * (group != 3))
    if form in ("middle", "center", *DEPTHS):
        return Place(form)
    if form == "corner":
        return Place(form, (pick(rng, ("top", "bottom")), pick(rng, ("left", "right"))))
    sides = [*("left", "right") * 3, "top", "bottom"] if form != "nth" else ["left", "right", "left", "right", "top"]
    rank = int(rng.integers(1, min(group, 4) + 1)) if form == "nth" else 1
    return Place(form, (pick(rng, sides),), rank)


def _alone_somewhere(rng: Generator, facts: Facts, referent: int, name: str, noun: str) -> Proposed | None:
    """The place of the only object of its name: true, if not needed. Only where it is plain to see."""
    if not facts.proves(Meaning(Looks(name)), referent) or coin(rng, 0.3):
        return None
    thing = facts.scene((name,)).objects[referent]
    spot = thing.cx / facts.width, thing.cy / facts.height
    sides = [side for side, (axis, sign) in AXES.items() if (spot[axis] if sign > 0 else 1 - spot[axis]) < 0.36]
    if not sides or max(thing.bbox[2] / facts.width, thing.bbox[3] / facts.height) > 0.6:
        return None
    return say(rng, Said(noun, place=Place("side", (pick(rng, sides),)))), ()


def _relation(rng: Generator, facts: Facts, referent: int, name: str) -> Proposed | None:
    one = facts.objects[referent]
    if one.category in CLOTHES:
        return None
    noun = noun_of(rng, facts, referent, name)
    color = one.color if one.category != "person" and coin(rng, 0.15) else ""
    group = len(facts.called(name))
    others = [
        n for n, other in enumerate(facts.objects) if n != referent and other.owner != referent and n in facts.referents
    ]
    if not others or (group == 1 and coin(rng, 0.5)):
        return None
    if one.category == "person" and coin(rng, 0.5):
        return say_contact(rng, facts, referent, noun, others)
    kind = "between" if len(others) > 1 and coin(rng, 0.08) else pick(rng, NEAR)
    chosen = [others[int(i)] for i in rng.permutation(len(others))[: 2 if kind == "between" else 1]]
    anchors = [name_anchor(rng, facts, number) for number in chosen]
    named = tuple(looks for looks in anchors if looks is not None)
    if len(named) < len(chosen) or any(looks.kind == name for looks in named):
        return None
    if not facts.proves(Meaning(Looks(name, color or None), relation=Relation(kind, named)), referent):
        return None
    nouns = tuple((looks.kind or "", looks.colour or "") for looks in named)
    return say(rng, Said(noun, color, relation=kind, anchors=nouns)), tuple(chosen)


def _from_caption(rng: Generator, facts: Facts, referent: int) -> Expression | None:
    one = facts.objects[referent]
    same = [o for o in facts.objects if o.category == one.category]
    if not one.captions or len(same) != 1 or not facts.is_known(names_of(one.category)[0], one.category):
        return None
    text = pick(rng, one.captions)
    article = "" if coin(rng, 0.5) else "the" if coin(rng, 0.4) else "a"
    return Expression((referent,), "caption", slip(rng, with_article(text, text.split()[0], article)), None)


def _union(rng: Generator, facts: Facts) -> Expression | None:
    """All objects of a name, if all of them are well seen."""
    names = [
        name
        for category in sorted({one.category for one in facts.objects} - CLOTHES)
        for name in names_of(category)
        if facts.is_known(name, category) and name not in PLURAL
    ]
    fitting = [
        name for name in names if 2 <= len(facts.called(name)) <= 5 and set(facts.called(name)) <= set(facts.referents)
    ]
    if not fitting:
        return None
    name = pick(rng, fitting)
    group = facts.called(name)
    return Expression(tuple(group), "union", say_all(rng, name, len(group)))


def rows_of(expressions: list[Expression]) -> Iterator[tuple[tuple[int, ...], list[Expression]]]:
    """The expressions of each set of referents, in order."""
    groups: dict[tuple[int, ...], list[Expression]] = {}
    for expression in expressions:
        groups.setdefault(expression.referents, []).append(expression)
    yield from sorted(groups.items())
