"""Expressions about annotated photographs: each is read again by a reader of the tests' own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from photo_reading import Shown, read

from vlformer_cli.data.photos import words
from vlformer_cli.data.photos.facts import Claim, Facts
from vlformer_cli.data.photos.objects import Garment, LabelledImage, Seen
from vlformer_cli.data.photos.propose import Expression, write_expressions
from vlformer_cli.data.scenes.meaning import Looks, Meaning, Place

CATEGORIES = ("dog", "cat", "person", "car", "bicycle", "motorcycle", "cup", "bottle", "couch", "elephant")
COLORS = ("red", "blue", "green", "yellow", "black", "white", "")


def random_image(rng: np.random.Generator) -> LabelledImage:
    """Ellipses of a few categories at random places, some hidden by others."""
    height, width = (240, 320) if rng.random() < 0.7 else (320, 240)
    objects: list[Seen] = []
    few = rng.choice(CATEGORIES, size=int(rng.integers(1, 4)), replace=False)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(int(rng.integers(1, 9))):
        category = str(rng.choice(few))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = np.exp(rng.uniform(np.log(7), np.log(60))), np.exp(rng.uniform(np.log(7), np.log(60)))
        full = ((columns - x) / radius[0]) ** 2 + ((rows - y) / radius[1]) ** 2 < 1
        if not full.any():
            continue
        objects = [Seen(**{**_fields(one), "mask_HW": one.mask_HW & ~full}) for one in objects]
        noun = str(rng.choice(["man", "woman", ""])) if category == "person" else ""
        color = "" if category == "person" else str(rng.choice(COLORS))
        area = float(np.pi * radius[0] * radius[1])
        objects.append(Seen(category, full, max(area, float(full.sum())), color=color, noun=noun))
    objects = [one for one in objects if one.mask_HW.any()]
    return LabelledImage(np.zeros((height, width, 3), np.uint8), tuple(objects), frozenset(CATEGORIES))


def _fields(one: Seen) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__slots__}


def made(rng: np.random.Generator, image: LabelledImage, no_target: float = 0.0) -> list[Expression]:
    return write_expressions(rng, Facts(image), most=12, no_target=no_target)


def test_every_expression_is_read_back_to_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "SLIPS", 0.0)
    seen: Counter[str] = Counter()
    wrong = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        image = random_image(rng)
        shown = [Shown(one.category, one.mask_HW, one.color, one.noun) for one in image.objects]
        for expression in made(rng, image):
            if expression.label == "union":
                continue
            seen[expression.label] += 1
            if read(expression.text, shown) != list(expression.referents):
                wrong.append((seed, expression.text, expression.referents, read(expression.text, shown)))
    assert not wrong, wrong[:5]
    assert all(seen[label] > 100 for label in ("category", "attribute", "location", "relation")), seen


def test_unions_name_all_objects_and_no_target_expressions_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "SLIPS", 0.0)
    counts: Counter[str] = Counter()
    for seed in range(300):
        rng = np.random.default_rng([1, seed])
        image = random_image(rng)
        shown = [Shown(one.category, one.mask_HW, one.color, one.noun) for one in image.objects]
        for expression in made(rng, image, no_target=0.5):
            counts[expression.label] += 1
            if expression.label == "union":
                name = image.objects[expression.referents[0]].category
                bikes = {"bicycle", "motorcycle"} if "bike" in expression.text else {name}
                assert [n for n, one in enumerate(image.objects) if one.category in bikes] == [*expression.referents]
            if expression.label == "no-target" and not _names_a_side(expression.text):
                assert not _fits(expression.text, shown), (seed, expression.text)
    assert counts["union"] > 20, counts
    assert counts["no-target"] > 100, counts


def _names_a_side(text: str) -> bool:
    return any(word in text for word in ("left", "right"))


def _fits(text: str, shown: list[Shown]) -> bool:
    """Whether an object has the noun and the color; what the reader has no noun for is not in these images."""
    try:
        return bool(read(text, shown))
    except AssertionError:
        return False


def seen(category: str, x: int, y: int, size: int = 30, **facts: object) -> Seen:
    mask_HW = np.zeros((200, 300), np.bool_)
    mask_HW[y : y + size, x : x + size] = True
    return Seen(category, mask_HW, float(size * size), **facts)  # type: ignore[arg-type]


def facts_of(*objects: Seen, labelled: frozenset[str] = frozenset(CATEGORIES)) -> Facts:
    return Facts(LabelledImage(np.zeros((200, 300, 3), np.uint8), objects, labelled))


def test_only_labelled_categories_carry_a_proof() -> None:
    facts = facts_of(seen("dog", 20, 20), seen("bicycle", 150, 20), labelled=frozenset({"dog", "bicycle"}))
    assert facts.is_known("dog")
    assert facts.is_known("bicycle")
    assert not facts.is_known("bike")  # it may be a motorcycle, and these are not labelled
    assert not facts.is_known("animal")


def test_a_group_makes_its_category_ambiguous() -> None:
    facts = facts_of(seen("dog", 20, 20), seen("dog", 150, 20, is_group=True))
    assert not facts.is_known("dog")
    assert facts.is_known("cat")


def test_unknown_features_count_as_possible() -> None:
    red = Meaning(Looks("car", "red"))
    assert facts_of(seen("car", 20, 20, color="red"), seen("car", 150, 20, color="blue")).proves(red, 0)
    assert not facts_of(seen("car", 20, 20, color="red"), seen("car", 150, 20)).proves(red, 0)
    woman = (Claim("noun", "woman"),)
    person = Meaning(Looks("person"))
    assert facts_of(seen("person", 20, 20, noun="woman"), seen("person", 150, 20, noun="man")).proves(person, 0, woman)
    assert not facts_of(seen("person", 20, 20, noun="woman"), seen("person", 150, 20)).proves(person, 0, woman)
    assert not facts_of(seen("person", 20, 20, noun="boy"), seen("person", 150, 20, noun="man")).proves(
        person, 0, (Claim("noun", "boy"),)
    )


def test_clothes_tell_people_apart_only_where_they_are_annotated() -> None:
    red = seen("person", 20, 20, clothes=(Garment("dress", "red"), Garment("bag", "black")))
    blue = seen("person", 150, 20, clothes=(Garment("dress", "blue"),))
    unknown = seen("person", 150, 120)
    dress, bag = (Claim("garment", "red", "dress"),), (Claim("carried", "black", "bag"),)
    person = Meaning(Looks("person"))
    assert facts_of(red, blue).proves(person, 0, dress)
    assert facts_of(red, blue).proves(person, 0, bag)
    assert not facts_of(red, unknown).proves(person, 0, dress)
    assert not facts_of(red, blue).proves(person, 1, dress)


def test_the_nearest_stands_lowest_and_is_largest() -> None:
    near, far = seen("dog", 20, 120, 60), seen("dog", 200, 40, 30)
    assert facts_of(near, far).proves(Meaning(Looks("dog"), Place("front")), 0)
    assert facts_of(near, far).proves(Meaning(Looks("dog"), Place("back")), 1)
    low_but_small = seen("dog", 20, 150, 20), seen("dog", 200, 40, 60)
    assert not facts_of(*low_but_small).proves(Meaning(Looks("dog"), Place("front")), 0)


def test_slips_are_as_many_as_stated() -> None:
    rng = np.random.default_rng(0)
    text = "the large elephant beside another elephant"
    changed = sum(words.slip(rng, text) != text for _ in range(4000)) / 4000
    assert 0.012 < changed < 0.026  # a swap of two equal letters changes nothing
