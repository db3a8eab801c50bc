"""Matching, sampling and losses against scipy, float64 formulas written here, and cases whose loss is known.

Letters: N expressions, Q queries, K points, Y X cells, H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import pad
from torch.testing import assert_close

from vlformer_cli.config import LossConfig
from vlformer_cli.loss.build import build_criterion
from vlformer_cli.loss.criterion import Counts, Criterion, Losses, choice_loss, valid_extent
from vlformer_cli.loss.matcher import CostWeights, dice_loss, match, matching_cost
from vlformer_cli.loss.points import StepPoints, read_points
from vlformer_cli.types import Batch, Pointed, Prediction, VLFormerOutput

WEIGHTS = CostWeights(class_=2.0, bce=5.0, dice=5.0)
Array = NDArray[np.float64]
ALL_DIFFERENT = {
    "class_weight": 2.0, "bce_weight": 3.0, "dice_weight": 5.0, "choice_weight": 7.0, "pointer_weight": 11.0,
    "anchor_weight": 13.0,
}  # fmt: skip
"""So that none can stand in another's place."""


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def reference_bce(logit: Array, truth: Array) -> Array:
    p = sigmoid(logit)
    mean: Array = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean(-1)
    return mean


def reference_dice(logit: Array, truth: Array) -> Array:
    p = sigmoid(logit)
    loss: Array = 1 - (2 * (p * truth).sum(-1) + 1) / (p.sum(-1) + truth.sum(-1) + 1)
    return loss


def reference_cost(logit_NQK: Array, truth_NK: Array, class_NQ2: Array) -> Array:
    truth_NQK = np.repeat(truth_NK[:, None], logit_NQK.shape[1], 1)
    chance_NQ = sigmoid(class_NQ2[..., 0] - class_NQ2[..., 1])
    cost: Array = 5 * reference_bce(logit_NQK, truth_NQK) + 5 * reference_dice(logit_NQK, truth_NQK) - 2 * chance_NQ
    return cost


def random_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits NQK, truth NK with soft edges, class logits NQ2."""
    torch.manual_seed(seed)
    logits = torch.randn(40, 5, 30) * 3
    return logits, (torch.rand(40, 30) * 2 - 0.5).clamp(0, 1), torch.randn(40, 5, 2) * 2


def test_matching_cost_and_match() -> None:
    logits_NQK, truth_NK, class_NQ2 = random_case()
    cost_NQ = matching_cost(logits_NQK, truth_NK, class_NQ2, WEIGHTS)
    expected_NQ = reference_cost(*(x.double().numpy() for x in (logits_NQK, truth_NK, class_NQ2)))
    np.testing.assert_allclose(cost_NQ.numpy(), expected_NQ, rtol=1e-5, atol=1e-5)
    hungarian = [int(linear_sum_assignment(cost_Q[:, None])[0][0]) for cost_Q in expected_NQ]
    assert match(logits_NQK, truth_NK, class_NQ2, WEIGHTS).tolist() == hungarian
    assert set(hungarian) == set(range(5))


@pytest.mark.parametrize("name", ["class_", "bce", "dice"])
def test_each_weight_counts_its_own_part(name: str) -> None:
    case = random_case(1)
    nothing = CostWeights(class_=0.0, bce=0.0, dice=0.0)
    one, three = (matching_cost(*case, replace(nothing, **{name: w})) for w in (1.0, 3.0))
    assert_close(three, 3 * one)
    logit, truth, classes = (x.double().numpy() for x in case)
    truth_NQK = np.repeat(truth[:, None], logit.shape[1], 1)
    expected = {
        "class_": -sigmoid(classes[..., 0] - classes[..., 1]),
        "bce": reference_bce(logit, truth_NQK),
        "dice": reference_dice(logit, truth_NQK),
    }[name]
    np.testing.assert_allclose(one.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_dice_of_nothing_and_of_a_perfect_mask() -> None:
    far = torch.full((1, 50), 100.0)
    truth = (torch.arange(50) < 20).float()[None]
    assert_close(dice_loss(far * (2 * truth - 1), truth), torch.zeros(1), atol=1e-6, rtol=0)
    assert_close(dice_loss(-far, torch.zeros(1, 50)), torch.zeros(1), atol=1e-6, rtol=0)
    assert_close(dice_loss(far, torch.zeros(1, 50)), torch.tensor([1 - 1 / 51]))


def test_read_points_is_bilinear_between_cell_centres() -> None:
    torch.manual_seed(2)
    maps_NCYX = torch.randn(2, 3, 5, 7)
    place_NK2 = torch.rand(2, 40, 2)
    place_NK2[0, 0], place_NK2[0, 1] = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    found = read_points(maps_NCYX, place_NK2, torch.ones(2, 2))
    for n in range(2):
        for k in range(40):
            x = min(max(float(place_NK2[n, k, 0]) * 7 - 0.5, 0), 6)
            y = min(max(float(place_NK2[n, k, 1]) * 5 - 0.5, 0), 4)
            left, top = min(int(x), 5), min(int(y), 3)
            right, down = x - left, y - top
            a, b = maps_NCYX[n, :, top, left], maps_NCYX[n, :, top, left + 1]
            c, d = maps_NCYX[n, :, top + 1, left], maps_NCYX[n, :, top + 1, left + 1]
            expected = (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)
            assert_close(found[n, :, k], expected, atol=1e-5, rtol=1e-5)


def test_the_canvas_around_a_picture_changes_no_loss() -> None:
    """A picture of 90 x 70 pixels, whose last cells are partly padding; beyond them there is anything."""
    torch.manual_seed(5)
    masks = torch.zeros(3, 96, 96, dtype=torch.bool)
    masks[0, 60:70, 50:90], masks[1, :20, 85:90], masks[2, 5:70, :90] = True, True, True
    valid = torch.zeros(3, 96, 96, dtype=torch.bool)
    valid[:, :70, :90] = True
    classes, logits, pointed = torch.randn(3, 2, 2), torch.randn(3, 2, 24, 24), torch.randn(3, 9, 12)
    found = []
    for height, width in ((96, 96), (160, 128)):
        wide_masks, wide_valid = (pad(x, (0, width - 96, 0, height - 96)) for x in (masks, valid))
        wide_logits = torch.randn(3, 2, height // 4, width // 4)
        wide_logits[..., :18, :23] = logits[..., :18, :23]
        batch = replace(make_batch(wide_masks), pixel_valid=wide_valid, slots=torch.tensor([4, 9, 2]))
        batch = replace(batch, anchors=wide_masks.roll(1, 0), anchors_known=torch.tensor([True, False, True]))
        coarse = torch.randn(3, height // 8, width // 8)
        coarse[:, :9, :12] = pointed
        output = VLFormerOutput(
            classes, wide_logits, (Prediction(classes, wide_logits),), Pointed(coarse, coarse.flip(0))
        )
        losses = criterion(500)(output, batch)
        found.append(all_of(losses))
    assert_close(found[0], found[1], atol=2e-6, rtol=1e-6)


def test_points_cover_the_valid_part_and_nothing_else() -> None:
    points = StepPoints(3, torch.arange(2))
    valid = torch.zeros(2, 20, 40, dtype=torch.bool)
    valid[0, :5, :30], valid[1] = True, True
    extent = valid_extent(valid)
    assert_close(extent, torch.tensor([[0.75, 0.25], [1.0, 1.0]]))
    for place in (
        points.random(extent, 4000),
        points.uncertain(torch.randn(2, 5, 10), extent, 4000, oversample=3.0, importance=0.5),
    ):
        assert place.shape == (2, 4000, 2)
        assert (place >= 0).all()
        assert (place <= extent[:, None]).all()
        assert (place.amax(1) > 0.98 * extent).all()
    assert_close(points.random(extent, 100_000).mean(1), extent / 2, atol=0.005, rtol=0)


def test_places_of_an_expression_do_not_depend_on_its_neighbours() -> None:
    slots = torch.tensor([0, 7, 300, 319])
    together, alone = StepPoints(11, slots), StepPoints(11, slots[2:3])
    for _ in range(3):
        places = together.random(torch.ones(4, 2), 500)
        assert torch.equal(places[2:3], alone.random(torch.ones(1, 2), 500))
        assert len({float(x) for x in places[:, 0, 0]}) == 4  # each has its own
    logits = torch.randn(4, 6, 6)
    chosen = together.uncertain(logits, torch.ones(4, 2), 200, oversample=3.0, importance=0.75)
    assert torch.equal(
        chosen[2:3], alone.uncertain(logits[2:3], torch.ones(1, 2), 200, oversample=3.0, importance=0.75)
    )
    assert not torch.equal(
        StepPoints(12, slots).random(torch.ones(4, 2), 5), StepPoints(11, slots).random(torch.ones(4, 2), 5)
    )


@pytest.mark.parametrize("slot", [0, 1, 5, 63, 319])
def test_places_are_uniform_for_every_slot(slot: int) -> None:
    """A chi-squared statistic over 8 x 8 cells of 20,000 points: 63 degrees of freedom, 110 is beyond 99.97 %."""
    place_K2 = StepPoints(slot, torch.tensor([slot])).random(torch.ones(1, 2), 20_000)[0]
    cell_K = (place_K2 * 8).long() @ torch.tensor([8, 1])
    counts = torch.bincount(cell_K, minlength=64).double()
    assert float(((counts - 312.5) ** 2 / 312.5).sum()) < 110


def test_losses_of_parts_add_up_to_those_of_the_whole() -> None:
    """With the counts of the whole, whichever way its expressions are shared out. Slot 2 means nothing."""
    torch.manual_seed(8)
    masks = torch.rand(5, 1, 1) < torch.rand(5, 64, 64)
    masks[2] = False
    whole = replace(make_batch(masks), draw=5)
    whole = replace(whole, image_index=torch.tensor([0, 1, 0, 3, 1]))  # a picture's expressions stay together
    anchors = masks.roll(2, 0)
    anchors[3] = False
    known = torch.tensor([True, True, False, True, True])
    whole = replace(whole, anchors=anchors, anchors_known=known)
    referents, marked = torch.randn(2, 5, 8, 8)
    pointed = Pointed(referents, marked)
    output = VLFormerOutput(torch.randn(5, 3, 2), torch.randn(5, 3, 16, 16), (), pointed)
    expected = criterion()(output, whole)
    found, of_pointer = torch.zeros(6), torch.zeros(6)
    for rows in (torch.tensor([3]), torch.tensor([0, 2]), torch.tensor([1, 4])):
        part = replace(whole, masks=masks[rows], slots=rows, image_index=whole.image_index[rows],
                       anchors=anchors[rows], anchors_known=known[rows])  # fmt: skip
        own_pointed = Pointed(referents[rows], marked[rows])
        own = replace(output, class_logits=output.class_logits[rows], mask_logits=output.mask_logits[rows],
                      pointed=own_pointed)  # fmt: skip
        losses = criterion()(own, part, Counts.of(whole))
        found += all_of(losses)
        of_pointer += all_of(criterion().of_pointer(own_pointed, part, Counts.of(whole)))
    assert isinstance(expected, Losses)
    assert_close(found, all_of(expected))
    assert_close(of_pointer, all_of(criterion().of_pointer(pointed, whole)))
    assert all(float(part) > 0.1 for part in found)
    assert float(Counts.of(whole).meant) == 4


def test_choice_loss_by_hand() -> None:
    """Picture 0: three expressions about two referents (the first and third mean the same), one that means nothing;
    picture 1: one expression alone."""
    cover_NYX = torch.zeros(5, 4, 4)
    cover_NYX[0, :2, :2] = cover_NYX[2, :2, :2] = 1
    cover_NYX[1, 2:, 2], cover_NYX[4, :, :1] = 1, 0.5
    torch.manual_seed(3)
    logits_NYX = torch.randn(5, 4, 4)
    left, right = logits_NYX[:, :2, :2].mean((1, 2)), logits_NYX[:, 2:, 2].mean(1)
    expected = torch.zeros(5)
    for n, (meant, other) in {0: (left, right), 1: (right, left), 2: (left, right)}.items():
        expected[n] = math.log(math.exp(meant[n]) + math.exp(other[n])) - meant[n]
    logits_NP = logits_NYX.flatten(1).requires_grad_()
    found = choice_loss(logits_NP, cover_NYX.flatten(1), torch.tensor([0, 0, 0, 0, 1]))
    assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert logits_NP.grad is not None
    assert logits_NP.grad[:3].abs().amax(1).min() > 0.01
    assert not logits_NP.grad[3:].any()  # also no NaN


def test_losses_of_the_pointer_by_hand() -> None:
    """One referent on the left half of a picture whose last quarter is padding, logits 2 within and -1 outside."""
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[0, :24, :16] = True
    batch = make_batch(masks)
    batch.pixel_valid[:, 24:] = False
    logits = torch.where(F.max_pool2d(masks.float(), 8) > 0, 2.0, -1.0)
    logits[:, 3] = 5.0  # on padding: must not matter
    found = criterion(**ALL_DIFFERENT).of_pointer(Pointed(logits), batch)
    inside, outside = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    assert float(found.bce) == pytest.approx(11 * (-math.log(inside) - math.log(1 - outside)) / 2, rel=1e-5)
    dice = 1 - (2 * 6 * inside + 1) / (6 * inside + 6 * outside + 6 + 1)
    assert float(found.dice) == pytest.approx(11 * dice, rel=1e-5)
    assert float(found.choice) == pytest.approx(0, abs=1e-6)
    assert float(found.total) == pytest.approx(float(3 * found.bce + 5 * found.dice), rel=1e-5)


def test_losses_of_the_anchors_by_hand() -> None:
    """One picture of 32 x 32, four cells a side. Expression 0 names a cell beside its own, 1 names nothing else, of 2
    nothing is known; the anchor and all referents compete for the words of 0."""
    masks, anchors = torch.zeros(3, 32, 32, dtype=torch.bool), torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[0, :8, :8], masks[1, 8:16, :8], masks[2, 24:, 24:], anchors[0, 16:24, 16:24] = True, True, True, True
    batch = replace(make_batch(masks), image_index=torch.zeros(3, dtype=torch.long))
    batch = replace(batch, anchors=anchors, anchors_known=torch.tensor([True, True, False]))
    torch.manual_seed(9)
    pointed = Pointed(torch.randn(3, 4, 4), torch.randn(3, 4, 4))
    assert pointed.anchors is not None
    own, marked = pointed.referent.double().numpy(), pointed.anchors.double().numpy()
    cells = [(0, 0), (1, 0), (3, 3), (2, 2)]  # the referents, and the anchor
    truth = np.zeros((3, 4, 4))
    truth[0, 2, 2] = 1
    anchor_choice = math.log(sum(math.exp(marked[(0, *cell)]) for cell in cells)) - marked[0, 2, 2]
    bce = reference_bce(marked.reshape(3, 16), truth.reshape(3, 16))
    dice = reference_dice(marked[0].reshape(16), truth[0].reshape(16))
    choice = [math.log(sum(math.exp(own[(n, *cell)]) for cell in cells)) - own[(n, *cells[n])] for n in range(3)]
    found = criterion(**ALL_DIFFERENT).of_pointer(pointed, batch)
    of_anchors = 13 * (3 * (bce[0] + bce[1]) + 5 * dice + 7 * anchor_choice) / 3
    assert float(found.anchors) == pytest.approx(of_anchors, rel=1e-5)
    assert float(found.choice) == pytest.approx(11 * sum(choice) / 3, rel=1e-5)
    total = 3 * found.bce + 5 * found.dice + 7 * found.choice + found.anchors
    assert float(found.total) == pytest.approx(float(total), rel=1e-5)


def test_uncertain_points_lie_where_logits_are_near_zero() -> None:
    """The logit is x - 0.3 in 20 columns: doubt is greatest at x = 0.3."""
    points = StepPoints(4, torch.tensor([3]))
    column_X = (torch.arange(20) + 0.5) / 20
    logits_NYX = (column_X - 0.3).expand(1, 20, 20)
    place = points.uncertain(logits_NYX, torch.ones(1, 2), 1000, oversample=4.0, importance=0.75)
    from_zero = (place[0, :, 0] - 0.3).abs()
    assert float(from_zero[:750].max()) < 0.12  # 750 of 4000 uniform candidates: within 0.094 of the line
    assert float(from_zero[:750].min()) < 0.01
    assert 0.1 < float((from_zero[750:] < 0.1).float().mean()) < 0.3  # the rest is uniform: 0.2
    everywhere = points.uncertain(logits_NYX, torch.ones(1, 2), 1000, oversample=4.0, importance=0.0)
    assert 0.1 < float(((everywhere[0, :, 0] - 0.3).abs() < 0.1).float().mean()) < 0.3


def all_of(losses: Losses) -> Tensor:
    return torch.stack([losses.total, losses.class_, losses.bce, losses.dice, losses.choice, losses.anchors])


def make_batch(masks: Tensor) -> Batch:
    """One picture for each mask, which fills its canvas."""
    count, height, width = masks.shape
    return Batch(
        images=torch.zeros(count, 3, height, width),
        pixel_valid=torch.ones(count, height, width, dtype=torch.bool),
        tokens=torch.zeros(count, 3, dtype=torch.long),
        image_index=torch.arange(count),
        masks=masks,
        slots=torch.arange(count),
        samples=(),
    )


def constant_masks(level_NQ: Tensor) -> Tensor:
    """NQYX: where a mask is the same everywhere, it does not matter where points fall."""
    return level_NQ[..., None, None].expand(*level_NQ.shape, 16, 16)


def criterion(points: int = 64, **weights: float) -> Criterion:
    return build_criterion(LossConfig(points=points, **weights))


def test_total_of_a_case_computed_by_hand() -> None:
    """Two blocks; expression 0 means the whole picture, expression 1 nothing. Masks are constant."""
    level_BNQ = [torch.tensor([[-1.0, 2.0], [3.0, -2.0]]), torch.tensor([[0.5, -3.0], [1.0, 1.0]])]
    class_BNQ2 = [
        torch.tensor([[[0.0, 1.0], [2.0, 0.5]], [[0.0, 0.0], [1.0, -1.0]]]),
        torch.tensor([[[-1.0, 1.0], [0.0, 3.0]], [[2.0, 0.0], [0.0, 0.5]]]),
    ]
    masks = torch.stack([torch.ones(64, 64), torch.zeros(64, 64)]).bool()
    parts = np.zeros(3)
    for level_NQ, class_NQ2 in zip(level_BNQ, class_BNQ2, strict=True):
        level, classes = level_NQ.double().numpy(), class_NQ2.double().numpy()
        query = int(np.argmax(level[0]))  # here the brighter mask is also the cheaper one
        logit, truth = np.full((2, 1, 64), 0.0) + level[0][:, None], np.ones((2, 64))
        assert query == int(np.argmin(reference_cost(logit[:1], truth[:1], classes[:1])[0]))
        log_p = classes - np.log(np.exp(classes).sum(-1, keepdims=True))
        label, weight = np.ones((2, 2), int), np.full((2, 2), 0.1)
        label[0, query], weight[0, query] = 0, 1.0
        picked = np.take_along_axis(log_p, label[..., None], 2)[..., 0]
        parts += [
            -(weight * picked).sum() / weight.sum(),
            math.log1p(math.exp(-level[0, query])),
            float(reference_dice(np.full(64, level[0, query]), np.ones(64))),
        ]
    outputs = [Prediction(c, constant_masks(m)) for c, m in zip(class_BNQ2, level_BNQ, strict=True)]
    losses = criterion(**ALL_DIFFERENT)(
        VLFormerOutput(outputs[1].class_logits, outputs[1].mask_logits, (outputs[0],)), make_batch(masks)
    )
    found = [float(losses.class_), float(losses.bce), float(losses.dice)]
    np.testing.assert_allclose(found, parts, rtol=1e-5)
    np.testing.assert_allclose(float(losses.total), 2 * parts[0] + 3 * parts[1] + 5 * parts[2], rtol=1e-5)


def test_mask_losses_are_means_over_the_expressions_that_mean_something() -> None:
    level_NQ = torch.tensor([[1.0], [2.0], [-4.0]])
    masks = torch.stack([torch.ones(64, 64), torch.ones(64, 64), torch.zeros(64, 64)]).bool()
    losses = criterion()(VLFormerOutput(torch.zeros(3, 1, 2), constant_masks(level_NQ)), make_batch(masks))
    expected = np.mean([math.log1p(math.exp(-1.0)), math.log1p(math.exp(-2.0))])
    np.testing.assert_allclose(float(losses.bce), expected, rtol=1e-5)


def test_expressions_that_mean_nothing() -> None:
    """No mask loss, finite gradients, and every query learns to say no-object."""
    torch.manual_seed(5)
    class_logits = torch.randn(2, 3, 2, requires_grad=True)
    mask_logits = torch.randn(2, 3, 16, 16, requires_grad=True)
    losses = criterion()(VLFormerOutput(class_logits, mask_logits), make_batch(torch.zeros(2, 64, 64).bool()))
    assert float(losses.bce.detach()) == float(losses.dice.detach()) == 0
    assert_close(losses.class_, -class_logits.log_softmax(-1)[..., 1].mean())
    losses.total.backward()
    assert mask_logits.grad is None or not mask_logits.grad.any()
    assert class_logits.grad is not None
    assert torch.isfinite(class_logits.grad).all()
    assert (class_logits.grad[..., 1] < 0).all()


def test_only_the_matched_query_learns_from_the_mask() -> None:
    torch.manual_seed(6)
    truth = torch.zeros(1, 64, 64, dtype=torch.bool)
    truth[:, :32] = True
    good = torch.nn.functional.avg_pool2d(truth.float(), 4) * 8 - 4
    mask_logits = torch.stack([-good, good, torch.zeros_like(good)], 1).requires_grad_()
    losses = criterion(256)(VLFormerOutput(torch.zeros(1, 3, 2), mask_logits), make_batch(truth))
    (losses.bce + losses.dice).backward()
    assert mask_logits.grad is not None
    assert mask_logits.grad[0, 1].any()
    assert not mask_logits.grad[0, [0, 2]].any()
    assert float(losses.bce.detach()) < 0.2  # points are read in the mask as they are in the logits: edges agree


def test_no_host_round_trip() -> None:
    """On the meta device tensors hold no values: whatever asks for one on the host raises."""
    for ask in (lambda x: x.item(), lambda x: x.cpu(), lambda x: x.nonzero(), lambda x: x[x > 0], bool):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask(torch.ones((), device="meta"))
    blocks = [
        Prediction(
            torch.empty(4, 5, 2, device="meta", requires_grad=True),
            torch.empty(4, 5, 16, 16, device="meta", requires_grad=True),
        )
        for _ in range(2)
    ]
    output = VLFormerOutput(blocks[1].class_logits, blocks[1].mask_logits, (blocks[0],))
    losses = criterion().to("meta")(output, make_batch(torch.zeros(4, 64, 64).bool()).to("meta"))
    losses.total.backward()
    assert blocks[0].mask_logits.grad is not None


def test_config_reaches_the_criterion() -> None:
    built = criterion(77, **ALL_DIFFERENT, no_object=0.2, oversample=2.0, importance=0.6)
    assert (built.points, built.oversample, built.importance) == (77, 2.0, 0.6)
    assert built.weights == CostWeights(class_=2, bce=3, dice=5)
    assert (built.choice_weight, built.pointer_weight, built.anchor_weight) == (7, 11, 13)
    assert_close(built.class_weights, torch.tensor([1.0, 0.2]))
