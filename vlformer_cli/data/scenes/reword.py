"""Expressions in words that `words.py` does not use: other names, comparatives, relations told from the other side,
whole sentences and punctuation. What they mean stays."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from numpy.random import Generator

from vlformer_cli.data.scenes.expressions import Expression
from vlformer_cli.data.scenes.meaning import Meaning, Place, Relation, matching
from vlformer_cli.data.scenes.objects import Scene
from vlformer_cli.data.scenes.plan import pick
from vlformer_cli.data.scenes.shapes import coin
from vlformer_cli.data.scenes.words import KIND_WORDS, OPENINGS, kind_word, noun, plural

NAMES = {
    "ball": ("toy ball",),
    "bag": ("tote", "tote bag"),
    "book": ("textbook", "paperback"),
    "bottle": ("water bottle",),
    "box": ("package", "parcel", "carton"),
    "car": ("automobile", "motor car"),
    "clock": ("timepiece",),
    "cup": ("coffee cup", "teacup"),
    "flower": ("blossom", "bloom"),
    "house": ("cottage",),
    "key": ("door key",),
    "lamp": ("light",),
    "mushroom": ("fungus",),
    "pencil": ("pen",),
    "phone": ("mobile phone", "mobile", "telephone"),
    "plane": ("aircraft", "jet"),
    "plant": ("houseplant", "pot plant"),
    "shoe": ("trainer",),
    "star": ("star shape",),
    "umbrella": ("brolly",),
}
"""More of what a kind is called."""
COLOURS = {
    "red": ("crimson", "scarlet"),
    "cyan": ("aqua", "light blue"),
    "yellow": ("golden",),
}
FAR = {
    "left": ("left most", "left-most", "closest to the left edge", "nearest the left", "nearest to the left"),
    "right": (
        "right most",
        "right-most",
        "closest to the right edge",
        "nearest the right",
        "nearest to the right",
    ),
    "top": ("top most", "top-most", "closest to the top edge", "nearest to the top", "closest to the top"),
    "bottom": ("bottom most", "bottom-most", "closest to the bottom edge", "nearest to the bottom", "furthest down"),
}
SIDES = {
    "left": ("at the left side", "in the left part", "towards the left", "to the left side", "over on the left"),
    "right": ("at the right side", "in the right part", "towards the right", "to the right side", "over on the right"),
    "top": ("at the top side", "in the top part", "in the upper part", "near the top", "up at the top"),
    "bottom": (
        "at the bottom side",
        "in the bottom part",
        "in the lower part",
        "near the bottom",
        "down at the bottom",
    ),
}
COMPARATIVES = {"biggest": ("bigger", "larger"), "smallest": ("smaller",)}
"""Of two."""
RELATIONS = {
    "left of": ("standing left of", "to the left side of", "on the left hand side of", "located left of"),
    "right of": ("standing right of", "to the right side of", "on the right hand side of", "located right of"),
    "above": ("on top of", "higher up than", "up above"),
    "below": ("lower down than", "situated under", "down under"),
    "next to": ("adjacent to", "alongside", "close by", "standing next to"),
    "closest to": ("that is nearest to", "which is the closest to"),
    "behind": ("partially hidden by", "half covered by", "obscured by"),
    "in front of": ("covering part of", "that covers", "obscuring"),
    "between": ("placed between", "located between", "standing between"),
}
OTHER_SIDE = {
    "left of": ("on its right", "to its right", "to the right of it"),
    "right of": ("on its left", "to its left", "to the left of it"),
    "above": ("below it", "under it", "underneath it"),
    "below": ("above it", "over it"),
}
"""The relation as it is told of the anchor: "the cup with the box on its right" is the cup left of the box."""
QUESTIONS = ("which one is", "can you see", "could you find", "where can i see", "where's")
REQUESTS = (
    "i am looking for",
    "i'm looking for",
    "give me",
    "highlight",
    "segment",
    "mark",
    "pick out",
    "search for",
    "i would like",
)
TAILS = ("in the picture", "in this picture", "in the image", "in the photo", "in this scene", "here")


def reworded(rng: Generator, expressions: Iterable[Expression], scene: Scene, share: float) -> list[Expression]:
    """The same expressions, a `share` of them in other words; none like another."""
    kept = list(expressions)
    texts = {expression.text for expression in kept}
    for number, expression in enumerate(kept):
        if not coin(rng, share):
            continue
        text = in_other_words(rng, expression.text, expression.meaning, scene)
        if text not in texts:
            texts.add(text)
            kept[number] = replace(expression, text=text)
    return kept


def in_other_words(rng: Generator, text: str, meaning: Meaning, scene: Scene) -> str:
    """One way of saying what `text` says."""
    of_two = len(matching(meaning.looks, scene, loose=True)) == 2
    is_comparison = of_two and meaning.place is not None and meaning.place.form in COMPARATIVES
    said = (_rephrased(rng, meaning, of_two) if is_comparison or coin(rng, 0.6) else None) or text
    if coin(rng, 0.3):
        said = _renamed(rng, said)
    return _as_sentence(rng, said) if said == text or coin(rng) else said


def _rephrased(rng: Generator, meaning: Meaning, of_two: bool) -> str | None:
    if meaning.place is not None:
        text = _placed(rng, meaning, meaning.place, of_two)
    elif meaning.relation is not None:
        text = _related(rng, meaning, meaning.relation)
    else:
        return None
    return f"the {text}" if text is not None and coin(rng) else text


def _placed(rng: Generator, meaning: Meaning, place: Place, of_two: bool) -> str | None:
    if place.form in COMPARATIVES and of_two:
        word = pick(rng, COMPARATIVES[place.form])
        if coin(rng, 0.25):
            return f"{word} of the two {plural(kind_word(rng, meaning.looks))}"
        return noun(rng, meaning.looks, before=word)
    words = {"far": FAR, "side": SIDES}.get(place.form)
    if words is None:
        return None
    phrase = pick(rng, words[place.directions[0]])
    if phrase.endswith("most"):
        return noun(rng, meaning.looks, before=phrase)
    return f"{noun(rng, meaning.looks)} {phrase}"


def _related(rng: Generator, meaning: Meaning, relation: Relation) -> str:
    anchors = " and ".join(f"the {noun(rng, anchor)}" for anchor in relation.anchors)
    if relation.name in OTHER_SIDE and coin(rng, 0.3):
        return f"{noun(rng, meaning.looks)} with {anchors} {pick(rng, OTHER_SIDE[relation.name])}"
    return f"{noun(rng, meaning.looks)} {pick(rng, RELATIONS[relation.name])} {anchors}"


def _renamed(rng: Generator, text: str) -> str:
    """One kind or colour by another name, where one of them is said."""
    names = NAMES | COLOURS
    there = [word for word in names if re.search(rf"\b{word}\b", text) and not _is_part_of_a_name(word, text)]
    if not there:
        return text
    word = pick(rng, there)
    return re.sub(rf"\b{word}\b", pick(rng, names[word]), text, count=1)


def _is_part_of_a_name(word: str, text: str) -> bool:
    """As "phone" is of "cell phone"."""
    return any(word in name and name in text for name in KIND_WORDS.get(word, ()))


def _as_sentence(rng: Generator, text: str) -> str:
    """With words around it, or a full stop."""
    if text.startswith(("of the ", *OPENINGS)):
        return text + pick(rng, (".", ".", "!"))
    the_text = text if text.startswith("the ") else f"the {text}"
    form = pick(rng, ("stop", "stop", "question", "request", "tail"))
    if form == "stop":
        return f"{text if coin(rng) else the_text}{pick(rng, ('.', '.', '.', '!'))}"
    if form == "question":
        return f"{pick(rng, QUESTIONS)} {the_text}" + pick(rng, ("?", "?", ""))
    if form == "request":
        return f"{pick(rng, REQUESTS)} {the_text}" + pick(rng, ("", ".", ", please"))
    tail = pick(rng, TAILS)
    return text + pick(rng, ("", ".")) if "picture" in text or "image" in text else f"{text} {tail}"
