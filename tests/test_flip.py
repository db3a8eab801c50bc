"""Mirrored pictures say the truth: the words are swapped, or the picture is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlformer_cli.data.dataset import TrainingBatches, WeightedSplit
from vlformer_cli.data.flip import SWAPS, mirror_group, mirrored
from vlformer_cli.data.scenes.generate import Recipe, generate_scenes
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.data.transforms import Augmentation
from vlformer_cli.types import ImageGroup, Sample


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("cup on the left", "cup on the right"),
        ("LEFT guy, not the Right one", "RIGHT guy, not the Left one"),
        ("leftmost of the right-hand chairs", "rightmost of the left-hand chairs"),
        ("the bright upright piano", "the bright upright piano"),
        ("zebra to the left of zebra on the right", "zebra to the right of zebra on the left"),
        ("red cup", "red cup"),
        ("leftover pizza", None),
        ("what's left of the cake, right side", None),
        ("dog right behind the man", None),
        ("chair right next to the bed on the left", None),
        ("the only one left", None),
        ("the one on the right, in front", "the one on the left, in front"),
        ("the cat is left of the dog", "the cat is right of the dog"),
        ("guy on teh rigth", None),
        ("the 3 o'clock slice", None),
        ("man on L", None),
        ("driver's side door", None),
        ("rightful owner", None),
        ("chair lhs", "chair rhs"),
    ],
)
def test_words(expression: str, expected: str | None) -> None:
    assert mirrored(expression) == expected


def test_twice_mirrored_is_as_it_was() -> None:
    assert all(SWAPS[SWAPS[word]] == word for word in SWAPS)
    assert mirrored(mirrored("Left of the RIGHT leftmost one") or "") == "Left of the RIGHT leftmost one"


def group(expressions: list[str], ref: object = None) -> ImageGroup:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    masks = np.zeros((len(expressions), 4, 6), np.bool_)
    masks[:, 1, 0] = True
    samples = tuple(Sample(ref, e, i, "") for i, e in enumerate(expressions))  # type: ignore[arg-type]
    anchors = np.zeros_like(masks)
    anchors[0, 3, 2] = True
    return ImageGroup(image, masks, samples, anchors)


def test_picture_masks_and_words_go_together_or_not_at_all() -> None:
    before = group(["left cup", "red cup"])
    after = mirror_group(before)
    assert after is not None
    np.testing.assert_array_equal(after.image_HW3[:, ::-1], before.image_HW3)
    assert np.argwhere(after.mask_NHW).tolist() == [[0, 1, 5], [1, 1, 5]]
    assert after.anchor_NHW is not None
    assert np.argwhere(after.anchor_NHW).tolist() == [[0, 3, 3]]
    assert [sample.expression for sample in after.samples] == ["right cup", "red cup"]
    no_anchors = mirror_group(replace(before, anchor_NHW=None))
    assert no_anchors is not None
    assert no_anchors.anchor_NHW is None
    assert mirror_group(group(["left cup", "leftover cup"])) is None


def side(expression: str) -> int:
    """-1 for the left, 1 for the right, 0 where the words do not say."""
    words = set(expression.lower().replace("-", " ").split())
    on_left, on_right = bool(words & {"left", "leftmost"}), bool(words & {"right", "rightmost"})
    return on_right - on_left


def test_in_training_half_of_the_pictures_are_mirrored_and_left_stays_left(tmp_path: Path) -> None:
    """Of two or more objects of a kind, the leftmost lies left of where the rightmost lies, mirrored or not."""
    generate_scenes(tmp_path / "scenes", images=60, seed=3, recipe=Recipe(size=96, scenario="directions"), workers=1)
    split = PreparedSplit(tmp_path / "scenes", "train")
    still = Augmentation(short_sides=(96,), max_side=96, rotate_degrees=0.0, colour_jitter=0.0, shift=0.0)
    plain, both = (
        TrainingBatches(
            sources=[WeightedSplit(split, 1.0, 0, None)], augmentation=still, images_per_step=1,
            expressions_per_image=20, max_tokens=40, steps=54, seed=5, mirror=mirror,
        )
        for mirror in (False, True)
    )  # fmt: skip
    turned, places = 0, {-1: [], 1: []}  # type: ignore[var-annotated]
    for step in range(54):
        (one,), (other,) = plain[step], both[step]
        is_turned = not bool((one.images == other.images).all())
        turned += is_turned
        for sample, mask in zip(other.samples, other.masks.numpy(), strict=True):
            far = {"leftmost", "far", "furthest"} & set(sample.expression.lower().split())
            if side(sample.expression) and far:
                places[side(sample.expression)].append(np.nonzero(mask)[1].mean() / mask.shape[1])
    assert 15 <= turned <= 39  # of 54: four standard deviations
    assert len(places[-1]) > 10
    assert len(places[1]) > 10
    assert np.mean(places[-1]) < 0.4 < 0.6 < np.mean(places[1])
