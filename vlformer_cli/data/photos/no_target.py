"""Expressions that nothing in an image fits: something absent, or something present with a wrong feature."""

from __future__ import annotations

from numpy.random import Generator

from vlformer_cli.data.photos.facts import Claim, Facts
from vlformer_cli.data.photos.names import CLOTHES, COCO_CATEGORIES, CONSPICUOUS, names_of
from vlformer_cli.data.photos.naming import choose_name, noun_of
from vlformer_cli.data.photos.words import Said, choose_noun, say
from vlformer_cli.data.scenes.meaning import Place
from vlformer_cli.data.scenes.objects import ALIKE
from vlformer_cli.data.scenes.plan import pick
from vlformer_cli.data.scenes.shapes import coin


def no_target_text(rng: Generator, facts: Facts) -> str | None:
    """A text that no object fits; None where the way that was drawn does not lead to one."""
    maker = pick(rng, (_absent, _absent, _wrong_color, _wrong_side, _wrong_person))
    return maker(rng, facts)


def _absent(rng: Generator, facts: Facts) -> str | None:
    here = {one.category for one in facts.objects}
    known = [c for c in sorted((facts.image.labelled & COCO_CATEGORIES) | CONSPICUOUS) if c not in here]
    if not known:
        return None
    name = pick(rng, names_of(pick(rng, known)))
    if not facts.is_known(name) or facts.called(name):
        return None
    if name == "person" and coin(rng, 0.7):
        name = pick(rng, ("man", "woman", "guy", "lady", "kid", "person on the left"))
    place = Place("side", (pick(rng, ("left", "right")),)) if coin(rng, 0.25) else None
    color = pick(rng, ("red", "white", "black", "blue")) if coin(rng, 0.2) and name not in CONSPICUOUS else ""
    return say(rng, Said(name, color, place=place))


def _wrong_color(rng: Generator, facts: Facts) -> str | None:
    """A color that no object of the name has, where the colors of all of them are known."""
    named = _someone(rng, facts)
    if named is None:
        return None
    name, number = named
    colors = {facts.objects[n].color for n in facts.called(name)}
    free = [c for c in ("red", "blue", "green", "yellow", "white", "black") if _is_other(c, colors)]
    if "" in colors or not free or facts.objects[number].category == "person":
        return None
    return say(rng, Said(name, pick(rng, free)))


def _is_other(color: str, colors: set[str]) -> bool:
    return color not in colors and not any(frozenset({color, other}) in ALIKE for other in colors)


def _wrong_side(rng: Generator, facts: Facts) -> str | None:
    """The only object of its name, said to be on the other side."""
    named = _someone(rng, facts)
    if named is None or len(facts.called(named[0])) > 1:
        return None
    name, number = named
    thing = facts.scene((name,)).objects[number]
    x, width = thing.cx / facts.width, thing.bbox[2] / facts.width
    if 0.3 < x < 0.7 or width > 0.4:
        return None
    form = pick(rng, ("side", "far"))
    return say(rng, Said(noun_of(rng, facts, number, name), place=Place(form, ("right" if x <= 0.3 else "left",))))


def _wrong_person(rng: Generator, facts: Facts) -> str | None:
    """A woman where there are only men, or clothes that nobody wears."""
    people = facts.called("person")
    if not people or not facts.is_known("person"):
        return None
    if coin(rng):
        noun = pick(rng, ("man", "woman", "boy", "girl"))
        if any(facts.truth(Claim("noun", noun), number) is not False for number in people):
            return None
        return say(rng, Said({"man": pick(rng, ("man", "guy")), "woman": pick(rng, ("woman", "lady"))}.get(noun, noun)))
    color = pick(rng, ("red", "blue", "green", "yellow", "white", "black"))
    claim = Claim("chest", color)
    if any(facts.truth(claim, number) is not False for number in people):
        return None
    return say(rng, Said(choose_noun(rng, facts.objects[pick(rng, people)].noun), claims=(claim,)))


def _someone(rng: Generator, facts: Facts) -> tuple[str, int] | None:
    """A name and one of the objects that it means."""
    if not facts.referents:
        return None
    number = pick(rng, facts.referents)
    name = choose_name(rng, facts, number)
    return None if name is None or facts.objects[number].category in CLOTHES else (name, number)
