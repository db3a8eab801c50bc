"""Reads an expression of the drawn data set as a stranger would: from its text and the objects' coordinates alone.

Nothing here comes from the generator: the words, the grammar and the geometry are written anew, with thresholds between
the generator's strict and loose ones, so that a reading that depends on hair-splitting fails.
"""

from __future__ import annotations

import math
import re
from typing import Any

Thing = dict[str, Any]

SYNONYMS = {
    "mug": "cup", "flask": "bottle", "novel": "book", "seat": "chair", "cap": "hat", "crate": "box", "cube": "box",
    "alarm clock": "clock", "dish": "plate", "cell phone": "phone", "smartphone": "phone", "desk": "table",
    "tea pot": "teapot", "potted plant": "plant", "sneaker": "shoe", "parasol": "umbrella", "handbag": "bag",
    "purse": "bag", "t-shirt": "shirt", "tee": "shirt", "teddy bear": "bear", "teddy": "bear", "auto": "car",
    "lorry": "truck", "sailboat": "boat", "ship": "boat", "airplane": "plane", "aeroplane": "plane", "home": "house",
    "toadstool": "mushroom", "crayon": "pencil", "grey": "gray", "violet": "purple",
    "turquoise": "cyan", "teal": "cyan",
    "large": "big", "huge": "big", "little": "small", "tiny": "small", "with stripes": "striped", "stripy": "striped",
    "with polka dots": "dotted", "with dots": "dotted", "spotted": "dotted", "polka-dot": "dotted",
    "with checks": "checked", "with squares": "checked", "checkered": "checked", "without a pattern": "plain",
    "1st": "first", "2nd": "second", "3rd": "third", "4th": "fourth", "largest": "biggest", "tiniest": "smallest",
    "in center of image": "center", "at center of picture": "center", "in center": "center", "central": "center",
    "in middle": "middle", "uppermost": "topmost", "highest up": "topmost", "highest": "topmost",
    "lowest down": "bottommost",
    "lowest": "bottommost", "nearest top": "topmost", "nearest bottom": "bottommost", "at very top": "topmost",
    "at very bottom": "bottommost", "upper": "top", "lower": "bottom", "towards": "at", "left hand": "left",
    "right hand": "right",
}  # fmt: skip
for _side in ("left", "right"):
    for _phrase in (f"on far {_side}", f"far {_side}", f"furthest to {_side}", f"all way to {_side}"):
        SYNONYMS[_phrase] = f"{_side}most"
RELATIONS = {
    "on left side of": "left", "on left of": "left", "to left of": "left", "left of": "left",
    "on right side of": "right", "on right of": "right", "to right of": "right", "right of": "right",
    "above": "top", "over": "top", "higher than": "top", "below": "bottom", "under": "bottom", "beneath": "bottom",
    "underneath": "bottom", "lower than": "bottom", "next to": "near", "beside": "near", "near": "near",
    "close to": "near", "by": "near", "closest to": "closest", "nearest to": "closest", "nearest": "closest",
    "behind": "behind", "partly hidden by": "behind", "partly covered by": "behind", "in back of": "behind",
    "in front of": "front", "partly hiding": "front", "partly covering": "front", "in between": "between",
    "between": "between",
}  # fmt: skip
OPENINGS = r"^(please find|find|select|where is|show me|i mean|look for|can you find|point to|i want) "
COLOURS = {"red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "gray"}
RANKS = ("first", "second", "third", "fourth")
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
STAND_INS = {"one", "thing", "object", "item"}
IN_BETWEEN = {"on", "in", "at", "to", "side", "corner", "from"}


def read(text: str, scene: dict[str, Any], kinds: set[str]) -> list[int]:
    """The indices of all objects that the text is true of; AssertionError for a text that cannot be understood."""
    return read_with_anchors(text, scene, kinds)[0]


def read_with_anchors(text: str, scene: dict[str, Any], kinds: set[str]) -> tuple[list[int], list[int]]:
    """The same, and the indices of what the text names beside them."""
    things = scene["objects"]
    size = (scene["width"], scene["height"])
    text = re.sub(OPENINGS, "", text.lower())
    text = _ungroup(text, things, kinds)
    text = re.sub(r"\b(the|that is|which is) ", "", text)
    text = re.sub(r"\bnearest (top|bottom)\b", r"\1most", text)  # before "nearest X" is taken for a relation
    for phrase in sorted(RELATIONS, key=len, reverse=True):
        found = re.search(rf"(?<!\S){phrase} (?=\S)", text)
        if found and not text[found.end() :].startswith("very"):
            referents = _noun(_plain_words(text[: found.start()]), things, kinds)
            anchors = [_only(_noun(_plain_words(part), things, kinds)) for part in text[found.end() :].split(" and ")]
            assert len(anchors) == (2 if RELATIONS[phrase] == "between" else 1), text
            others = [i for i in referents if i not in anchors]
            return _related(RELATIONS[phrase], others, anchors, things, size), anchors
    return _placed(_plain_words(text), things, size, kinds), []


def _only(found: list[int]) -> int:
    assert len(found) == 1, f"an anchor means {len(found)} objects"
    return found[0]


def _singular(word: str, kinds: set[str]) -> str:
    options = [word, word[:-1], word[:-2], word[:-3] + "y"]
    return next(option for option in options if SYNONYMS.get(option, option) in kinds)


def _ungroup(text: str, things: list[Thing], kinds: set[str]) -> str:
    """ "of the three cups, the red one" becomes "the red cup"; "2nd of the cups from left": "2nd cup from left"."""
    found = re.search(r"\bof the (?:(two|three|four|five) )?([a-z -]+?)(, the | from )", text)
    if not found:
        return text
    kind = _singular(found[2], kinds)
    if found[1]:
        assert sum(t["kind"] == SYNONYMS.get(kind, kind) for t in things) == NUMBERS[found[1]], text
    if found[3] == " from ":
        return text[: found.start()] + kind + text[found.end(2) :]
    return re.sub(r"\bone\b", kind, text[found.end() :])


def _plain_words(text: str) -> list[str]:
    for phrase in sorted(SYNONYMS, key=len, reverse=True):
        text = re.sub(rf"(?<!\S){phrase}(?!\S)", SYNONYMS[phrase], text)
    return text.split()


def _noun(words: list[str], things: list[Thing], kinds: set[str]) -> list[int]:
    """The objects that a list of adjectives and a kind is true of; every word must be known."""
    left = [word for word in words if word not in STAND_INS]
    for name, known in (
        ("kind", kinds),
        ("colour", COLOURS),
        ("size", {"big", "small"}),
        ("pattern", {"plain", "striped", "dotted", "checked"}),
    ):
        said = [word for word in left if word in known]
        assert len(said) <= 1, words
        left = [word for word in left if word not in known]
        if said:
            things = [t if t and t[name] == said[0] else {} for t in things]
    assert left in ([], ["in"]), f"cannot understand {left} in {words}"
    return [i for i, t in enumerate(things) if t]


def _placed(words: list[str], things: list[Thing], size: tuple[int, int], kinds: set[str]) -> list[int]:
    sides = [w for w in words if w in ("left", "right", "top", "bottom")]
    ranks = [w for w in words if w in RANKS]
    forms = [w for w in words if w in ("middle", "center", "biggest", "smallest") or w.endswith("most")]
    if not sides and not forms and not ranks:
        return _noun(words, things, kinds)
    group = _noun([w for w in words if w not in {*sides, *forms, *ranks, *IN_BETWEEN}], things, kinds)
    if not group:
        return []
    assert len(group) > 1, "a place was given for something that is alone"
    if ranks:
        return [_ordered(group, sides[0], things, size)[RANKS.index(ranks[0])]]
    if forms:
        return _extreme(forms[0], group, things, size)
    if len(sides) == 1 and len(group) == 2:
        return [_ordered(group, sides[0], things, size)[0]]
    return [i for i in group if all(_inset(things[i], side, size) < 0.46 for side in sides)]


def _inset(thing: Thing, side: str, size: tuple[int, int]) -> float:
    """How far from a side of the picture the centre lies, as a fraction of the picture."""
    share = thing["cx"] / size[0] if side in ("left", "right") else thing["cy"] / size[1]
    return share if side in ("left", "top") else 1 - share


def _ordered(group: list[int], side: str, things: list[Thing], size: tuple[int, int]) -> list[int]:
    return sorted(group, key=lambda i: _inset(things[i], side, size))


def _extreme(form: str, group: list[int], things: list[Thing], size: tuple[int, int]) -> list[int]:
    if form in ("biggest", "smallest"):
        extents = sorted(group, key=lambda i: things[i]["extent"], reverse=form == "biggest")
        ratio = things[extents[0]]["extent"] / things[extents[1]]["extent"]
        assert max(ratio, 1 / ratio) > 1.2, "the sizes are too much alike"
        return extents[:1]
    if form == "center":
        offsets = {i: math.hypot(things[i]["cx"] / size[0] - 0.5, things[i]["cy"] / size[1] - 0.5) for i in group}
        return [i for i in group if offsets[i] < 0.23]
    if form == "middle":
        assert len(group) == 3
        spread = {
            s: _inset(things[_ordered(group, s, things, size)[-1]], s, size)
            - _inset(things[_ordered(group, s, things, size)[0]], s, size)
            for s in ("left", "top")
        }
        return _ordered(group, max(spread, key=lambda s: spread[s]), things, size)[1:2]
    side = form.removesuffix("most")
    first, second = _ordered(group, side, things, size)[:2]
    assert _inset(things[second], side, size) - _inset(things[first], side, size) > 0.08, "too close to call"
    return [first]


def _related(name: str, group: list[int], anchors: list[int], things: list[Thing], size: tuple[int, int]) -> list[int]:
    anchor = things[anchors[0]]
    if name == "closest":
        ranked = sorted(group, key=lambda i: _distance(things[i], anchor))
        assert len(ranked) > 1
        assert _distance(things[ranked[1]], anchor) > 1.3 * _distance(things[ranked[0]], anchor)
        return ranked[:1]
    tests = {
        "near": lambda t, i: _gap(t, anchor) < 0.15 * max(size),
        "behind": lambda t, i: _hides(anchor, anchors[0], t) > 0.03,
        "front": lambda t, i: _hides(t, i, anchor) > 0.03,
        "between": lambda t, i: _between(t, anchor, things[anchors[-1]]),
    }
    side = lambda t, i: _inset(anchor, name, size) - _inset(t, name, size) > 0.05  # noqa: E731
    return [i for i in group if tests.get(name, side)(things[i], i)]


def _distance(one: Thing, two: Thing) -> float:
    return math.hypot(one["cx"] - two["cx"], one["cy"] - two["cy"])


def _gap(one: Thing, two: Thing) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = one["bbox"], two["bbox"]
    return math.hypot(max(ax - bx - bw, bx - ax - aw, 0), max(ay - by - bh, by - ay - ah, 0))


def _hides(front: Thing, front_index: int, back: Thing) -> float:
    """The fraction of `back` that `front` hides; it must lie in front of it and touch it."""
    share = dict(map(tuple, back["hidden_by"])).get(front_index, 0.0)
    if share > 0.03:
        assert front["depth"] > back["depth"]
        assert _gap(front, back) <= 3
    return float(share)


def _between(thing: Thing, one: Thing, two: Thing) -> bool:
    dx, dy = two["cx"] - one["cx"], two["cy"] - one["cy"]
    px, py = thing["cx"] - one["cx"], thing["cy"] - one["cy"]
    length = math.hypot(dx, dy)
    along, aside = (px * dx + py * dy) / length**2, abs(px * dy - py * dx) / length**2
    return 0.15 < along < 0.85 and aside < 0.35


FAR_WORDS = {
    "left": r"left most|left-most|closest to the left edge|nearest the left|nearest to the left|closest to the left",
    "right": r"right most|right-most|closest to the right edge|nearest the right|nearest to the right",
    "top": r"top most|top-most|closest to the top edge|nearest to the top|closest to the top",
    "bottom": r"bottom most|bottom-most|closest to the bottom edge|nearest to the bottom|furthest down",
}
SIDE_WORDS = {
    "left": r"at the left side|in the left part|towards the left|to the left side(?! of)|over on the left",
    "right": r"at the right side|in the right part|towards the right|to the right side(?! of)|over on the right",
    "top": r"at the top side|in the top part|in the upper part|near the top|up at the top",
    "bottom": r"at the bottom side|in the bottom part|in the lower part|near the bottom|down at the bottom",
}
PLAINER = {
    r"(standing|located) (left|right) of": r"\2 of", r"to the (left|right) side of": r"\1 of",
    r"on the (left|right) hand side of": r"\1 of", r"on top of|higher up than|up above": "above",
    r"lower down than|down under|situated under": "below", r"adjacent to|alongside|close by|standing next to":
    "next to", r"that is nearest to|which is the closest to": "closest to",
    r"partially hidden by|half covered by|obscured by": "behind", r"covering part of|that covers|obscuring":
    "in front of", r"(placed|located|standing) between": "between",
    r"tote bag|tote": "bag", r"toy ball": "ball", r"textbook|paperback": "book",
    r"water bottle": "bottle", r"package|parcel|carton": "box", r"automobile|motor car": "car", r"timepiece": "clock",
    r"coffee cup|teacup": "cup", r"blossom|bloom": "flower", r"cottage": "house", r"door key": "key",
    r"light(?! blue)": "lamp", r"fungus": "mushroom", r"pen": "pencil", r"mobile phone|mobile|telephone": "phone",
    r"aircraft|jet": "plane", r"houseplant|pot plant": "plant", r"trainer": "shoe", r"star shape": "star",
    r"brolly": "umbrella", r"crimson|scarlet": "red", r"aqua|light blue": "cyan", r"golden": "yellow",
}  # fmt: skip
DRESSING = (
    r"^(which one is|can you see|could you find|where can i see|where's|i am looking for|i'm looking for|give me|"
    r"highlight|segment|mark|pick out|search for|i would like) |"
    r"( in the picture| in this picture| in the image| in the photo| in this scene| here)?(, please)?[.!?]?$"
)
OTHER_SIDE = (
    (r"(on its|to its) right|to the right of it", "left of"),
    (r"(on its|to its) left|to the left of it", "right of"),
    (r"(below|under|underneath) it", "above"),
    (r"(above|over) it", "below"),
)


def usual(text: str, kinds: set[str]) -> str:
    """What was said in less usual words, in those that `read` knows."""
    text = re.sub(DRESSING, "", text)
    for telling, relation in OTHER_SIDE:
        found = re.fullmatch(rf"(.+?) with the (.+) (?:{telling})", text)
        if found:
            text = f"{found[1]} {relation} the {found[2]}"
    for phrase, plainer in sorted(PLAINER.items(), key=lambda pair: -len(pair[0])):
        text = re.sub(rf"(?<![\w-])(?:{phrase})(?![\w-])", plainer, text)
    for side in FAR_WORDS:
        text = re.sub(rf"(?<![\w-])(?:{FAR_WORDS[side]})(?= |$)", f"{side}most", text)
        text = re.sub(rf"(?<![\w-])(?:{SIDE_WORDS[side]})(?= |$)", f"on {side}", text)
    of_two = re.search(r"\b(bigger|larger|smaller) of the two ([a-z -]+)$", text)
    if of_two:
        text = f"{text[: of_two.start()]}{of_two[1]} {_singular(of_two[2], kinds)}"
    text = re.sub(r"\b(bigger|larger)\b", "biggest", re.sub(r"\bsmaller\b", "smallest", text))
    return re.sub(r" +", " ", text).strip()
