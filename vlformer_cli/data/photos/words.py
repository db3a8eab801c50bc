"""From meanings to the words of people: telegraphic as in RefCOCO, or whole noun phrases as in RefCOCOg.

Shares of styles, articles and lengths follow 28,703 sentences of RefCOCO, RefCOCO+ and RefCOCOg (validation splits).
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from vlformer_cli.data.photos.facts import Claim
from vlformer_cli.data.photos.names import MASS, PLURAL
from vlformer_cli.data.scenes.meaning import Place
from vlformer_cli.data.scenes.plan import pick
from vlformer_cli.data.scenes.shapes import coin
from vlformer_cli.data.scenes.words import plural

STYLES = ("short", "the", "a")
STYLE_SHARES = (0.56, 0.22, 0.22)
SLIPS = 0.02
"""The share of expressions with a typing error."""

NOUNS = {
    "man": (("man", 0.5), ("guy", 0.3), ("person", 0.12), ("dude", 0.04), ("gentleman", 0.01), ("male", 0.03)),
    "woman": (("woman", 0.5), ("lady", 0.22), ("girl", 0.14), ("person", 0.1), ("female", 0.02), ("chick", 0.02)),
    "boy": (("boy", 0.6), ("kid", 0.25), ("child", 0.1), ("little boy", 0.05)),
    "girl": (("girl", 0.7), ("kid", 0.1), ("child", 0.1), ("little girl", 0.1)),
    "child": (("kid", 0.45), ("child", 0.45), ("baby", 0.1)),
    "": (("person", 0.93), ("human", 0.03), ("individual", 0.02), ("someone", 0.02)),
}
"""What a person of whom this is known is called, and how often."""
COLORS = {"gray": ("gray", "grey", "silver"), "brown": ("brown", "brown", "tan"), "pink": ("pink",)}
SIDES_BEFORE = {
    "left": ("left", "left", "left", "left hand", "left side"),
    "right": ("right", "right", "right", "right hand", "right side"),
    "top": ("top", "upper"),
    "bottom": ("bottom", "lower"),
}
SIDES_AFTER = {
    "left": ("on the left", "on left", "left", "to the left", "on the left side", "on left side", "at left", "to left"),
    "right": (
        *("on the right", "on right", "right", "to the right", "on the right side", "on right side", "at right"),
        "to right",
    ),
    "top": ("at the top", "at top", "on top", "top", "up top", "in the upper part"),
    "bottom": ("at the bottom", "at bottom", "bottom", "on the bottom", "on bottom", "in the lower part"),
}
FAR_BEFORE = {
    "left": ("leftmost", "far left", "left most", "furthest left"),
    "right": ("rightmost", "far right", "right most", "furthest right"),
    "top": ("topmost", "highest", "top most"),
    "bottom": ("lowest", "bottommost", "bottom most"),
}
FAR_AFTER = {
    "left": ("on the far left", "far left", "on far left", "furthest to the left", "all the way left"),
    "right": ("on the far right", "far right", "on far right", "furthest to the right", "all the way right"),
    "top": ("at the very top", "highest up", "closest to the top", "nearest the top"),
    "bottom": ("at the very bottom", "lowest down", "closest to the bottom", "nearest the bottom"),
}
MIDDLE_BEFORE = ("middle", "middle", "center")
MIDDLE_AFTER = ("in the middle", "in middle", "middle", "in the center", "in center")
FRONT_BEFORE = ("front", "closest", "nearest")
FRONT_AFTER = (
    *(
        "in front",
        "closest to us",
        "closest to the camera",
        "in the front",
        "nearest to us",
        "closest",
        "in foreground",
    ),
    *("in the foreground", "closest to you", "nearest the camera"),
)
BACK_BEFORE = ("back", "furthest", "farthest")
BACK_AFTER = (
    *("in back", "in the back", "in the background", "in background", "furthest away", "farthest away", "way in back"),
    *("farthest from us", "farthest from the camera", "in the distance"),
)
RANKS = {1: ("first", "1st"), 2: ("second", "2nd"), 3: ("third", "3rd"), 4: ("fourth", "4th")}
BIG = ("biggest", "largest", "bigger", "big", "large")
SMALL = ("smallest", "smaller", "little", "small", "tiniest")
RELATIONS = {
    "left of": ("left of", "to the left of", "on the left of", "to left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right of", "to right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "underneath", "beneath", "lower than"),
    "next to": ("next to", "beside", "by", "near", "close to"),
    "closest to": ("closest to", "nearest to", "nearest", "closest"),
    "between": ("between", "in between"),
}
CUT_OFF = ("cut off", "partially visible", "half visible", "partly out of the picture", "partial")
OPENINGS = ("find", "select", "where is", "show me", "click", "segment", "i want", "look for", "point to")
OPENED = 0.03


@dataclass(frozen=True, slots=True)
class Said:
    """What an expression is to say, in order of its words."""

    noun: str
    color: str = ""
    claims: tuple[Claim, ...] = ()
    place: Place | None = None
    relation: str = ""
    anchors: tuple[tuple[str, str], ...] = ()
    """Noun and color of each."""
    relation_words: tuple[str, ...] = ()
    """Ways to say the relation; empty: those of its name."""
    pair: bool = False
    """The referent is one of two: "the bigger one", "the left one"."""


def choose_noun(rng: Generator, known: str) -> str:
    """A word for a person, by what is known of the person."""
    words = NOUNS[known]
    shares = [share for _, share in words]
    return words[int(rng.choice(len(words), p=[share / sum(shares) for share in shares]))][0]


def say(rng: Generator, said: Said) -> str:
    """One way to say it."""
    style = str(rng.choice(STYLES, p=STYLE_SHARES))
    before, after = _placed(rng, said)
    adjectives = [*([before] if before else []), *([_color(rng, said.color)] if said.color else [])]
    tails = [_claim(rng, claim, style) for claim in said.claims]
    tails = [tail for tail in tails if tail]
    if said.color and not before and style != "short" and coin(rng, 0.08):
        adjectives, tails = [], [f"that is {_color(rng, said.color)}", *tails]
    if after:
        tails = [after, *tails] if coin(rng, 0.4) else [*tails, after]
    if said.relation:
        tails.append(_related(rng, said, style))
    text = " ".join([*adjectives, said.noun, *tails])
    is_definite = style == "the" or (style == "a" and said.place is not None and said.place.form != "side")
    text = with_article(text, said.noun, "" if style == "short" else "the" if is_definite else "a")
    if style == "the" and coin(rng, OPENED / STYLE_SHARES[1]):
        text = f"{pick(rng, OPENINGS)} {text}"
    return slip(rng, text)


def with_article(text: str, noun: str, article: str) -> str:
    """The phrase with "the", "a" or nothing before it; plurals and masses take no "a".

    >>> with_article("orange cat", "cat", "a"), with_article("red shoes", "shoes", "a")
    ('an orange cat', 'red shoes')
    """
    if article == "the":
        return f"the {text}"
    if article == "a" and noun not in PLURAL | MASS and noun != "someone":
        return f"an {text}" if text[0] in "aeiou" and not text.startswith(("one", "uni")) else f"a {text}"
    return text


def say_all(rng: Generator, name: str, count: int) -> str:
    """All objects of a name at once: "both dogs"."""
    many = name if name in PLURAL | MASS else plural(name)
    numbers = {2: "two", 3: "three", 4: "four", 5: "five"}
    options = [f"all {many}", f"all the {many}", many, f"the {many}", f"every {name}"]
    if count in numbers:
        options += [f"the {numbers[count]} {many}", f"{numbers[count]} {many}", f"all {numbers[count]} {many}"]
    if count == 2:
        options = [o for o in options if not o.startswith(("all", "every"))]
        options += [f"both {many}", f"both {many}", f"both of the {many}", f"both the {many}"]
    return slip(rng, pick(rng, options))


def slip(rng: Generator, text: str) -> str:
    """Now and then with a typing error inside a longer word: a letter too few, twice, or in the wrong place."""
    words = text.split()
    long = [number for number, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if not long or not coin(rng, SLIPS):
        return text
    number = pick(rng, long)
    word, spot = words[number], int(rng.integers(1, len(words[number]) - 1))
    how = int(rng.integers(3))
    if how == 0:
        words[number] = word[:spot] + word[spot + 1 :]
    elif how == 1:
        words[number] = word[:spot] + word[spot] + word[spot:]
    else:
        words[number] = word[: spot - 1] + word[spot] + word[spot - 1] + word[spot + 1 :]
    return " ".join(words)


def _color(rng: Generator, color: str) -> str:
    return pick(rng, COLORS.get(color, (color,)))


def _placed(rng: Generator, said: Said) -> tuple[str, str]:
    """Words before and after the noun, of which one is empty but for ordinals."""
    place = said.place
    if place is None:
        return "", ""
    if place.form in ("biggest", "smallest"):
        words = BIG if place.form == "biggest" else SMALL
        return pick(rng, words if said.pair else words[:2]), ""
    if place.form == "nth":
        ending = f"{pick(rng, ('from the', 'from', 'from the'))} {place.directions[0]}"
        return pick(rng, RANKS[place.rank]), ending
    before, after = _place_words(place)
    return (pick(rng, before), "") if coin(rng, 0.45) else ("", pick(rng, after))


def _place_words(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if place.form in ("middle", "center"):
        return MIDDLE_BEFORE, MIDDLE_AFTER
    if place.form in ("front", "back"):
        return (FRONT_BEFORE, FRONT_AFTER) if place.form == "front" else (BACK_BEFORE, BACK_AFTER)
    first = place.directions[0]
    if place.form == "corner":
        side = place.directions[1]
        upper = SIDES_BEFORE[first]
        corners = tuple(f"{word} {side}" for word in upper)
        tails = tuple(f"{how}{c}{end}" for c in corners for how, end in _CORNERS)
        return (*corners, f"{side} {upper[0]}"), (*tails, f"on the {side} at the {first}")
    if place.form == "far":
        return FAR_BEFORE[first], FAR_AFTER[first]
    return SIDES_BEFORE[first], SIDES_AFTER[first]


_CORNERS = (("", ""), ("in the ", ""), ("in ", ""), ("in the ", " corner"), ("on the ", ""), ("in ", " corner"))


def _claim(rng: Generator, claim: Claim, style: str) -> str:
    """The words of a claim; a noun is said by the noun itself."""
    if claim.kind == "noun":
        return ""
    if claim.kind == "cut off":
        return pick(rng, CUT_OFF)
    if claim.kind == "chest":
        color = _color(rng, claim.value)
        shirt = with_article(f"{color} shirt", "shirt", "" if style == "short" else "a")
        options = (f"in {color}", f"in {color}", f"wearing {color}", f"in {shirt}", f"with {shirt}", f"wearing {shirt}")
        return pick(rng, options)
    garment = claim.garment
    what = f"{_color(rng, claim.value)} {garment}" if claim.value else garment
    what = with_article(what, garment, "" if style == "short" and coin(rng, 0.7) else pick(rng, ("a", "the", "a")))
    if claim.kind == "carried" and garment in ("bag", "purse"):
        return f"{pick(rng, ('with', 'carrying', 'holding', 'with'))} {what}"
    return f"{pick(rng, ('in', 'wearing', 'in', 'with', 'wearing'))} {what}"


def _related(rng: Generator, said: Said, style: str) -> str:
    article = "" if style == "short" and coin(rng, 0.6) else pick(rng, ("the", "the", "a"))
    anchors = []
    for noun, color in said.anchors:
        phrase = f"{_color(rng, color)} {noun}" if color else noun
        anchors.append(with_article(phrase, noun, article))
    link = pick(rng, ("that is ", "which is ", "standing ", "")) if style == "a" and coin(rng, 0.3) else ""
    link = "" if link == "standing " and said.noun not in ("man", "woman", "person", "guy", "boy", "girl") else link
    return f"{link}{pick(rng, said.relation_words or RELATIONS[said.relation])} {' and '.join(anchors)}"
