"""The metrics against pycocotools, against sums done by hand, and against what must hold for any masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from vlformer_cli.metrics import THRESHOLDS, SampleScore, overlap, score, summarise, summarise_by, summarise_scores
from vlformer_cli.types import VLFormerError


def random_masks(seed: int, count: int = 40) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    rng = np.random.default_rng(seed)
    shapes = rng.integers(1, 40, (count, 2))
    return [(rng.random(shape) < rng.random(), rng.random(shape) < rng.random()) for shape in shapes]


def coco_rle(mask: NDArray[np.bool_]) -> dict[str, object]:
    rle: dict[str, object] = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle


def test_overlap_is_what_pycocotools_says() -> None:
    for mask, truth in random_masks(0):
        rles = [coco_rle(mask), coco_rle(truth)]
        pair = overlap(mask, truth)
        assert pair.intersection == coco.area(coco.merge(rles, intersect=True))
        assert pair.union == coco.area(coco.merge(rles))
        if pair.union:
            assert pair.iou == pytest.approx(coco.iou(rles[:1], rles[1:], [0])[0, 0], abs=1e-12)


def test_oiou_is_the_iou_of_the_masks_laid_side_by_side() -> None:
    pairs = [(mask, truth) for mask, truth in random_masks(1) if (mask | truth).any()]
    rows = [np.concatenate([pair[side].ravel() for pair in pairs])[None] for side in (0, 1)]
    expected = coco.iou([coco_rle(rows[0])], [coco_rle(rows[1])], [0])[0, 0]
    summary = summarise_scores([score(mask, truth, sent_id=i) for i, (mask, truth) in enumerate(pairs)])
    assert summary.oiou == pytest.approx(expected, abs=1e-12)
    by_hand = [(mask & truth).sum() / (mask | truth).sum() for mask, truth in pairs]
    assert summary.miou == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-12)


def test_overlap_is_symmetric_and_perfect_with_itself() -> None:
    for mask, truth in random_masks(2):
        pair = overlap(mask, truth)
        assert overlap(truth, mask) == pair
        assert 0 <= pair.intersection <= pair.union <= mask.size
        assert overlap(mask, mask).iou == 1
        assert overlap(mask, ~mask).intersection == 0


def test_summary_by_hand() -> None:
    summary = summarise([100, 75, 40, 0], [100, 100, 100, 200])
    assert summary.count == 4
    assert summary.oiou == 215 / 500
    assert summary.miou == (1 + 0.75 + 0.4 + 0) / 4
    assert summary.precision == {0.5: 0.5, 0.6: 0.5, 0.7: 0.5, 0.8: 0.25, 0.9: 0.25}
    assert summary.n_acc is None
    assert summary.t_acc is None


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_sample_on_the_threshold_does_not_count(threshold: float) -> None:
    tenths = round(threshold * 10)
    assert summarise([tenths], [10]).precision[threshold] == 0
    assert summarise([tenths * 100 + 1], [1000]).precision[threshold] == 1


def test_nothing_meant_and_nothing_predicted_is_right_and_adds_nothing() -> None:
    empty = np.zeros((4, 5), bool)
    right = score(empty, empty, sent_id=1)
    assert (right.iou, right.union) == (1, 0)
    half = SampleScore(2, 50, 100, 50, 100)
    summary = summarise_scores([right, half])
    assert (summary.oiou, summary.miou) == (0.5, 0.75)
    assert summarise_scores([right]).oiou == 1


def test_nothing_meant_but_something_predicted_is_wrong_and_adds_its_area() -> None:
    empty, predicted = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    wrong = score(predicted, empty, sent_id=1)
    assert (wrong.iou, wrong.intersection, wrong.union) == (0, 0, 20)
    assert summarise_scores([wrong, SampleScore(2, 10, 20, 10, 20)]).oiou == 10 / 40


def test_n_acc_and_t_acc_and_precision_over_the_targeted() -> None:
    scores = [
        SampleScore(0, 0, 0, mask_area=0, truth_area=0),
        SampleScore(1, 0, 9, mask_area=9, truth_area=0),
        SampleScore(2, 0, 8, mask_area=8, truth_area=0),
        SampleScore(3, 8, 10, mask_area=8, truth_area=10),
        SampleScore(4, 0, 10, mask_area=0, truth_area=10),
    ]
    summary = summarise_scores(scores)
    assert summary.n_acc == 1 / 3
    assert summary.t_acc == 1 / 2
    assert summary.precision[0.7] == 1 / 2
    only_empty = summarise_scores(scores[:3])
    assert (only_empty.n_acc, only_empty.t_acc, only_empty.precision) == (1 / 3, None, {})


def test_sums_do_not_overflow() -> None:
    huge = 6000 * 4000
    summary = summarise(np.full(1000, huge, np.int32), np.full(1000, huge, np.int32))
    assert summary.oiou == 1
    assert summary.miou == 1


def test_groups_cover_the_whole() -> None:
    scores = [
        score(mask, truth, sent_id=i, kind="abc"[i % 3]) for i, (mask, truth) in enumerate(random_masks(3)) if i != 1
    ]
    groups = summarise_by(scores, lambda s: s.kind)
    assert list(groups) == ["a", "b", "c"]
    assert sum(g.count for g in groups.values()) == len(scores)
    weighted = sum(g.miou * g.count for g in groups.values()) / len(scores)
    assert summarise_scores(scores).miou == pytest.approx(weighted, abs=1e-12)
    assert summarise_by([], lambda s: s.kind) == {}


def test_json_has_plain_names_and_no_empty_fields() -> None:
    row = json.loads(json.dumps(summarise([1], [2]).to_json(), allow_nan=False))
    assert list(row) == ["count", "oiou", "miou", "pr@0.5", "pr@0.6", "pr@0.7", "pr@0.8", "pr@0.9"]
    with_empty = summarise([1, 0], [2, 0], mask_empty=[0, 1], truth_empty=[0, 1]).to_json()
    assert (with_empty["n_acc"], with_empty["t_acc"]) == (1.0, 1.0)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(VLFormerError, match=r"\(2, 3\) and \(3, 2\)"):
        overlap(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
    with pytest.raises(VLFormerError, match="one or more samples"):
        summarise([], [])
    with pytest.raises(VLFormerError, match=r"lengths \[1, 2\]"):
        summarise([1, 2], [1])
