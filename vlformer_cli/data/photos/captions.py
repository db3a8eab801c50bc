"""Captions name the photograph's main object: "a man riding a wave" means the man where there is one person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vlformer_cli.data.photos.names import PLURAL, names_of

PEOPLE = {
    "man": ("man", "guy", "gentleman", "male"),
    "woman": ("woman", "lady", "female"),
    "boy": ("boy",),
    "girl": ("girl",),
    "child": ("child", "kid", "toddler", "baby"),
}
"""What captions and people call a person, by what that person is."""
ROLES = (
    *("surfer", "skier", "snowboarder", "skateboarder", "skate boarder", "tennis player", "baseball player", "player"),
    *("batter", "pitcher", "catcher", "person", "rider", "cyclist", "biker", "motorcyclist", "policeman", "chef"),
)
"""Other words for a person; they do not tell what the person is."""
SKILLED = frozenset({"surfer", "skier", "snowboarder", "skateboarder", "tennis player", "baseball player", "batter"})
BEFORE = (
    r"(?:young|old|older|elderly|little|small|big|large|tall|bearded|smiling|happy|professional|male|female|blond|"
    r"blonde|asian|handsome|pretty|shirtless|bald|black|white|brown|red|blue|green|yellow|orange|gray|grey|tan|"
    r"fluffy|cute|striped|calico|tabby|stuffed|wooden|empty|open|single|lone|beautiful|very)"
)
PLURAL_OR_MORE = re.compile(
    r"\b(two|three|four|five|several|group|people|men|women|crowd|couple|some|many|others?|another|"
    r"and (?:a|an|his|her) (?:man|woman|boy|girl|child|dog|person|lady|guy|friend))\b"
)
STOP = re.compile(
    r"\b(?:in|of) (?:a|an|the|this|his|her) (?:picture|photo|photograph|image|black and white)\b.*$|[.;:!?].*$"
)
FOLLOWS = re.compile(r"^(?:$|\s+(?:in|on|at|with|is|that|which|near|by|under|behind|next|inside|\w+ing|\w+ed)\b)")
"""What may stand after the name of a thing: "bed in a room", not "bed room"."""
LONGEST = 16  # words of an expression that is made of a caption
SHORTEST_CUT = 4


@dataclass(frozen=True, slots=True)
class Captions:
    """What captions say of one object."""

    expressions: tuple[str, ...]
    noun: str
    """man, woman, boy, girl or child; empty where captions disagree or do not tell."""


def read_captions(captions: Sequence[str], category: str) -> Captions:
    """Expressions for the only object of a category, from the captions whose subject it is.

    >>> read_captions(["A young man riding a wave on a surfboard.", "Two men surf."], "person")
    Captions(expressions=('young man riding a wave on a surfboard', 'young man riding a wave'), noun='man')
    """
    words = _subjects(category)
    pattern = re.compile(
        rf"^(?:there is |this is )?(?:a|an|the|one)\s+((?:{BEFORE}\s+)*({'|'.join(words)})\b(?!\s*')(.*))$"
    )
    expressions: list[str] = []
    nouns: Counter[str] = Counter()
    for caption in captions:
        text = STOP.sub("", " ".join(caption.lower().split())).strip(" ,")
        match = pattern.match(text)
        if match is None or PLURAL_OR_MORE.search(text):
            continue
        said, subject, rest = match[1].strip(" ,"), match[2], match[3]
        if category == "person":
            nouns[_what(subject, said)] += 1
        elif not FOLLOWS.match(rest):
            continue
        if rest.startswith((" and ", ",")) or not 2 <= len(said.split()) <= LONGEST:
            continue
        expressions += [text for text in (said, _shortened(said)) if text and text not in expressions]
    return Captions(tuple(expressions), _agreed(nouns))


def _subjects(category: str) -> list[str]:
    if category != "person":
        return sorted((re.escape(n) for n in names_of(category) if n not in PLURAL), key=len, reverse=True)
    known = [word for words in PEOPLE.values() for word in words]
    return sorted((*known, *ROLES), key=len, reverse=True)


def _what(subject: str, said: str) -> str:
    for what, words in PEOPLE.items():
        if subject in words:
            return what
    sexes = {"male": "man", "female": "woman"}
    return next((what for word, what in sexes.items() if re.search(rf"\b{word}\b", said)), "")


def _agreed(nouns: Counter[str]) -> str:
    """The noun that captions agree on; a child may be called a boy by some and a kid by others."""
    told = {noun for noun in nouns if noun}
    if len(told) == 1:
        return told.pop()
    for noun in ("boy", "girl"):
        if told == {noun, "child"}:
            return noun
    return ""


def _shortened(text: str) -> str:
    """Up to the second preposition, if that leaves a phrase; empty otherwise."""
    match = re.match(
        r"^(.*?\b(?:in|on|at|with|near|by|over|under|holding|riding|wearing|eating)\b.*?)\s+(?:in|on|at|with|near|by|while|as|next|over|under|during|to|from|for|that)\b",
        text,
    )
    short = match[1].strip(" ,") if match else ""
    return (
        short if SHORTEST_CUT <= len(short.split()) < len(text.split()) and not short.endswith((" a", " the")) else ""
    )
