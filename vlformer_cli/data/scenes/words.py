"""From meanings to English: synonyms, and phrases from telegraphic to whole sentences."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from vlformer_cli.data.scenes.meaning import Looks, Meaning, Place, Relation
from vlformer_cli.data.scenes.plan import pick
from vlformer_cli.data.scenes.shapes import coin

KIND_WORDS: dict[str, tuple[str, ...]] = {
    "cup": ("mug",),
    "bottle": ("flask",),
    "book": ("novel",),
    "chair": ("seat",),
    "hat": ("cap",),
    "box": ("crate", "cube"),
    "clock": ("alarm clock",),
    "plate": ("dish",),
    "phone": ("cell phone", "smartphone"),
    "table": ("desk",),
    "teapot": ("tea pot",),
    "plant": ("potted plant",),
    "shoe": ("sneaker",),
    "umbrella": ("parasol",),
    "bag": ("handbag", "purse"),
    "shirt": ("t-shirt", "tee"),
    "bear": ("teddy bear", "teddy"),
    "car": ("auto",),
    "truck": ("lorry",),
    "boat": ("sailboat", "ship"),
    "plane": ("airplane", "aeroplane"),
    "house": ("home",),
    "mushroom": ("toadstool",),
    "pencil": ("crayon",),
    "person": ("human",),
    "couch": ("sofa",),
    "tv": ("television",),
    "motorcycle": ("motorbike",),
    "bicycle": ("bike",),
    "donut": ("doughnut",),
    "remote": ("remote control",),
    "laptop": ("laptop computer",),
    "backpack": ("rucksack",),
    "refrigerator": ("fridge",),
}
"""What else a kind is called; about a quarter of the time."""
COLOUR_WORDS = {"gray": ("grey",), "purple": ("violet",), "cyan": ("turquoise", "teal")}
SIZE_WORDS = {"big": ("big", "large", "huge"), "small": ("small", "little", "tiny")}
PATTERN_WORDS = {
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka-dot"),
    "checked": ("checked", "checkered"),
    "plain": ("plain",),
}
PATTERN_TAILS = {
    "striped": ("with stripes",),
    "dotted": ("with dots", "with polka dots"),
    "checked": ("with checks", "with squares"),
    "plain": ("without a pattern",),
}
PLURALS = {"fish": "fish", "person": "people", "knife": "knives", "mouse": "mice", "sheep": "sheep"}
"""Those that no rule gives; "skis" and "scissors" are plurals already."""
RANKS = {1: ("first", "1st"), 2: ("second", "2nd"), 3: ("third", "3rd"), 4: ("fourth", "4th")}
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}
SUPERLATIVES = {"biggest": ("biggest", "largest"), "smallest": ("smallest", "tiniest")}

FAR_BEFORE = {
    "left": ("leftmost", "far left"),
    "right": ("rightmost", "far right"),
    "top": ("topmost", "highest", "uppermost"),
    "bottom": ("lowest", "bottommost"),
}
FAR_AFTER = {
    "left": ("on the far left", "on far left", "far left", "furthest to the left", "all the way to the left"),
    "right": ("on the far right", "on far right", "far right", "furthest to the right", "all the way to the right"),
    "top": ("at the very top", "highest up", "nearest the top"),
    "bottom": ("at the very bottom", "lowest down", "nearest the bottom"),
}
SIDE_BEFORE = {
    "left": ("left", "left hand"),
    "right": ("right", "right hand"),
    "top": ("top", "upper"),
    "bottom": ("bottom", "lower"),
}
SIDE_AFTER = {
    "left": ("on the left", "on left", "left", "to the left", "on the left side", "at left"),
    "right": ("on the right", "on right", "right", "to the right", "on the right side", "at right"),
    "top": ("at the top", "at top", "top", "towards the top"),
    "bottom": ("at the bottom", "at bottom", "bottom", "towards the bottom"),
}
MIDDLES = {
    "middle": (("middle",), ("in the middle", "in middle")),
    "center": (
        ("center", "central"),
        ("in the center", "in center", "at the center of the picture", "in the center of the image"),
    ),
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of", "on the left side of", "to left of"),
    "right of": ("right of", "to the right of", "on the right of", "on the right side of", "to right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath", "underneath", "lower than"),
    "next to": ("next to", "beside", "near", "close to", "by"),
    "closest to": ("closest to", "nearest to", "nearest"),
    "behind": ("behind", "partly hidden by", "partly covered by", "in back of"),
    "in front of": ("in front of", "partly hiding", "partly covering"),
    "between": ("between", "in between"),
}
OPENINGS = (
    "please find",
    "find",
    "select",
    "where is",
    "show me",
    "i mean",
    "look for",
    "can you find",
    "point to",
    "i want",
)
EXTRA_WORDS = 0.26


def plural(word: str) -> str:
    """Of a kind's word.

    >>> plural("box"), plural("butterfly"), plural("key"), plural("dish")
    ('boxes', 'butterflies', 'keys', 'dishes')
    """
    if word in PLURALS or word.endswith(("skis", "scissors")):
        return PLURALS.get(word, word)
    if word.endswith(("x", "sh", "ch", "s")):
        return word + "es"
    consonant_y = word.endswith("y") and word[-2] not in "aeiou"
    return word[:-1] + "ies" if consonant_y else word + "s"


def say(rng: Generator, meaning: Meaning, family: int) -> str:
    """One way of putting a meaning into words; `family` is the number of objects of the referent's kind."""
    formal = coin(rng)
    if meaning.place is not None:
        text = _place(rng, meaning.looks, meaning.place, family)
    elif meaning.relation is not None:
        text = _relation(rng, meaning.looks, meaning.relation, formal)
    else:
        text = _looks_alone(rng, meaning.looks, family)
    if text.startswith("of the "):
        return text
    if formal:
        text = "the " + text
        return f"{pick(rng, OPENINGS)} {text}" if coin(rng, 0.35) else text
    return text


def noun(rng: Generator, looks: Looks, before: str = "", bare: str | None = None) -> str:
    """Adjectives and the word for the kind; `before` leads, `bare` stands for a kind that is left out."""
    adjectives, tail = [before] if before else [], ""
    if looks.size is not None:
        adjectives.append(pick(rng, SIZE_WORDS[looks.size]))
    if looks.pattern is not None:
        if coin(rng, 0.35):
            tail = pick(rng, PATTERN_TAILS[looks.pattern])
        else:
            adjectives.append(pick(rng, PATTERN_WORDS[looks.pattern]))
    if looks.colour is not None:
        adjectives.append(_synonym(rng, looks.colour, COLOUR_WORDS))
    return " ".join(word for word in (*adjectives, kind_word(rng, looks, bare), tail) if word)


def kind_word(rng: Generator, looks: Looks, bare: str | None = None) -> str:
    """The word for the kind, or a stand-in."""
    if looks.kind is not None:
        return _synonym(rng, looks.kind, KIND_WORDS)
    return bare or pick(
        rng, ("one", "one", "thing", "object") if looks.colour or looks.pattern else ("thing", "object", "item")
    )


def _synonym(rng: Generator, word: str, table: dict[str, tuple[str, ...]]) -> str:
    return pick(rng, table[word]) if word in table and coin(rng, EXTRA_WORDS) else word


def _looks_alone(rng: Generator, looks: Looks, family: int) -> str:
    rest = Looks(None, looks.colour, looks.size, looks.pattern)
    if looks.kind is not None and rest != Looks():
        if family in COUNTS and coin(rng, 0.1):
            return f"of the {COUNTS[family]} {plural(kind_word(rng, looks))}, the {noun(rng, rest, bare='one')}"
        if coin(rng, 0.12) and looks.colour is not None:
            shown = noun(rng, Looks(looks.kind, None, looks.size, looks.pattern))
            return f"{shown} {pick(rng, ('that is', 'which is', 'in'))} {_synonym(rng, looks.colour, COLOUR_WORDS)}"
    return noun(rng, looks)


def _place(rng: Generator, looks: Looks, place: Place, family: int) -> str:
    before, after, ending = _place_words(rng, place)
    if looks == Looks(looks.kind) and looks.kind is not None and coin(rng, 0.12):
        number = f"{COUNTS[family]} " if family in COUNTS and coin(rng) else ""
        return _of_the_group(rng, number + plural(kind_word(rng, looks)), (before, after, ending))
    if ending:
        leading = coin(rng, 0.75)
        text = noun(rng, looks, before=before if leading else "")
        return f"{text} {ending}" if leading else f"{text} {before} {ending}"
    if before and (not after or coin(rng)):
        return noun(rng, looks, before=before)
    link = pick(rng, ("that is ", "which is ")) if coin(rng, 0.1) else ""
    return f"{noun(rng, looks)} {link}{after}"


def _of_the_group(rng: Generator, group: str, place: tuple[str, str, str]) -> str:
    """ "second of the cups from the left", "of the two cups, the left one"."""
    before, after, ending = place
    if ending:
        return f"{before} of the {group} {ending}"
    leading = not after or coin(rng)
    return f"of the {group}, the {f'{before} one' if leading else f'one {after}'}"


def _place_words(rng: Generator, place: Place) -> tuple[str, str, str]:
    """Words before the noun, words after it, and the ending of an ordinal."""
    if place.form in SUPERLATIVES:
        return pick(rng, SUPERLATIVES[place.form]), "", ""
    if place.form in MIDDLES:
        before, after = MIDDLES[place.form]
        return pick(rng, before), pick(rng, after), ""
    first = place.directions[0]
    if place.form == "far":
        return pick(rng, FAR_BEFORE[first]), pick(rng, FAR_AFTER[first]), ""
    if place.form == "side":
        return pick(rng, SIDE_BEFORE[first]), pick(rng, SIDE_AFTER[first]), ""
    if place.form == "nth":
        return pick(rng, RANKS[place.rank]), "", f"{pick(rng, ('from the', 'from'))} {first}"
    corner = f"{pick(rng, SIDE_BEFORE[first])} {place.directions[1]}"
    tails: Sequence[str] = (corner, f"in the {corner}", f"in the {corner} corner", f"at {corner}", f"on the {corner}")
    return corner, pick(rng, tails), ""


def _relation(rng: Generator, looks: Looks, relation: Relation, formal: bool) -> str:
    article = "the " if formal or coin(rng, 0.4) else ""
    link = pick(rng, ("that is ", "which is ")) if formal and coin(rng, 0.35) else ""
    anchors = " and ".join(article + noun(rng, anchor) for anchor in relation.anchors)
    return f"{noun(rng, looks)} {link}{pick(rng, RELATION_WORDS[relation.name])} {anchors}"
