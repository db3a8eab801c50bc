"""How objects are named: nouns, clothes, and what people are on or hold."""

from __future__ import annotations

from numpy.random import Generator

from vlformer_cli.data.photos.facts import Claim, Facts
from vlformer_cli.data.photos.names import BROADER, CARRIED, CLOTHES, HELD, RIDDEN, ROLES, WORN, names_of
from vlformer_cli.data.photos.words import Said, choose_noun, say
from vlformer_cli.data.scenes.meaning import Looks, Meaning, Relation
from vlformer_cli.data.scenes.plan import pick
from vlformer_cli.data.scenes.shapes import coin

Proposed = tuple[str, tuple[int, ...]]
"""A text, and the objects that it names beside its referent."""


def choose_name(rng: Generator, facts: Facts, referent: int) -> str | None:
    """One of the names of the object; the first more often. None where none of them can carry a proof."""
    category = facts.objects[referent].category
    names = list(names_of(category))
    if category not in CLOTHES and coin(rng, 0.06):
        names += [name for name, covered in BROADER.items() if category in covered]
        names = names[-1:]
    elif len(names) > 1 and coin(rng, 0.6):
        names = names[:1]
    known = [name for name in names if facts.is_known(name, category)]
    return pick(rng, known) if known else None


def noun_of(rng: Generator, facts: Facts, referent: int, name: str) -> str:
    """How the object is called: people by what is known of them."""
    return choose_noun(rng, facts.objects[referent].noun) if name == "person" else name


def told_by(noun: str, known: str) -> tuple[Claim, ...]:
    """What a noun says of a person."""
    return () if not known or noun in ("person", "human", "individual", "someone") else (Claim("noun", known),)


def clothes_of(rng: Generator, facts: Facts, referent: int) -> tuple[Claim, ...]:
    """What a person wears."""
    one = facts.objects[referent]
    options = [Claim("chest", one.chest)] if one.chest else []
    for garment in one.clothes or ():
        color = garment.color if coin(rng, 0.85) else ""
        if garment.category in WORN and (
            color or garment.category in ("dress", "skirt", "suit", "coat", "shorts", "hat")
        ):
            options.append(Claim("garment", color, garment.category))
        if garment.category in CARRIED:
            options.append(Claim("carried", color, garment.category))
    if not options:
        return ()
    first = pick(rng, options)
    second = pick(rng, options)
    return (
        (first, second)
        if second.garment != first.garment and coin(rng, 0.2) and first.kind != "chest" != second.kind
        else (first,)
    )


def name_anchor(rng: Generator, facts: Facts, number: int) -> Looks | None:
    """A name, with its color if needed, that means this object alone."""
    one = facts.objects[number]
    name = choose_name(rng, facts, number)
    if name is None or one.category in CLOTHES:
        return None
    plain = Looks(name)
    if facts.proves(Meaning(plain), number):
        return plain
    colored = Looks(name, one.color) if one.color and name != "person" else None
    return colored if colored is not None and facts.proves(Meaning(colored), number) else None


def say_contact(rng: Generator, facts: Facts, referent: int, noun: str, others: list[int]) -> Proposed | None:
    """A person on, or with, something; sometimes by what that makes the person: "skier"."""
    kind, table = pick(rng, (("on", RIDDEN), ("with", HELD)))
    fitting = [number for number in others if facts.objects[number].category in table]
    if not fitting:
        return None
    number = pick(rng, fitting)
    looks = name_anchor(rng, facts, number)
    if looks is None or not facts.proves(Meaning(Looks("person"), relation=Relation(kind, (looks,))), referent):
        return None
    category = facts.objects[number].category
    if category in ROLES and len(facts.called(category)) == 1 and coin(rng, 0.3):
        return say(rng, Said(pick(rng, ROLES[category]))), ()
    nouns = ((looks.kind or "", looks.colour or ""),)
    return say(rng, Said(noun, relation=kind, anchors=nouns, relation_words=table[category])), (number,)
