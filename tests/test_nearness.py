"""How near cells are to what is marked, against distances between all pairs of cells.

Letters: B images, N expressions, Y X cells of a grid, K widths.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vlformer_cli.model.nearness import FAINT, FLOOR, WIDTHS, Nearness

SHAPES, STRIDES = ((6, 8), (3, 4)), (8, 16)


def transparent() -> Nearness:
    """What it would add are the logarithms themselves."""
    module = Nearness(dim=len(WIDTHS))
    with torch.no_grad():
        module.out.weight.copy_(torch.eye(len(WIDTHS)))
    return module


def by_pairs(marked_YX: Tensor, valid_YX: Tensor) -> Tensor:
    """SK: for every cell a sum over all cells of the finest grid, one by one."""
    lines, columns = valid_YX.any(1).sum(), valid_YX.any(0).sum()
    side = 8 * max(int(lines), int(columns))
    total = float((marked_YX * valid_YX).sum()) + FAINT * int(valid_YX.sum())
    rows = []
    for (height, width), stride in zip(SHAPES, STRIDES, strict=True):
        for y in range(height):
            for x in range(width):
                sums = [0.0] * len(WIDTHS)
                for v in range(6):
                    for u in range(8):
                        apart = (
                            math.dist(((y + 0.5) * stride, (x + 0.5) * stride), ((v + 0.5) * 8, (u + 0.5) * 8)) / side
                        )
                        for k, width_of in enumerate(WIDTHS):
                            share = float(marked_YX[v, u]) * float(valid_YX[v, u])
                            sums[k] += share * math.exp(-0.5 * (apart / width_of) ** 2)
                rows.append([math.log(s / total + FLOOR) for s in sums])
    return torch.tensor(rows)


def test_blurs_by_pairs_of_cells() -> None:
    """Two pictures, of which one fills 4 x 7 cells of the canvas, and three expressions."""
    torch.manual_seed(0)
    logits = torch.randn(3, 6, 8) * 3
    valid = torch.zeros(2, 6, 8, dtype=torch.bool)
    valid[0, :4, :7], valid[1] = True, True
    index = torch.tensor([1, 0, 1])
    found = transparent()(logits, valid, SHAPES, STRIDES, index)
    for n in range(3):
        assert_close(found[n], by_pairs(logits[n].sigmoid(), valid[index[n]]), atol=1e-4, rtol=1e-4)


def test_the_nearer_cell_gets_more_at_every_width() -> None:
    logits = torch.full((1, 6, 8), -20.0)
    logits[0, 2, 1] = 20.0
    near = transparent()(logits, torch.ones(1, 6, 8).bool(), SHAPES[:1], STRIDES[:1], torch.tensor([0]))
    near_YXK = near.unflatten(1, (6, 8))[0]
    row = near_YXK[2, 1:]
    assert (row[:-1] - row[1:] > -1e-6).all()
    assert (row[:-1] - row[1:])[:, -1].min() > 1e-3  # the widest tells all of them apart


def test_it_begins_by_adding_nothing_and_learns_all_the_same() -> None:
    module, logits = Nearness(dim=4), torch.randn(1, 6, 8, requires_grad=True)
    added = module(logits, torch.ones(1, 6, 8).bool(), SHAPES, STRIDES, torch.tensor([0]))
    assert not added.any()
    added.sum().backward()
    assert module.out.weight.grad is not None
    assert module.out.weight.grad.abs().min() > 0


@pytest.mark.parametrize("level", [-30.0, 30.0])
def test_nothing_marked_and_all_marked_are_finite(level: float) -> None:
    logits = torch.full((1, 6, 8), level, requires_grad=True)
    found = transparent()(logits, torch.ones(1, 6, 8).bool(), SHAPES, STRIDES, torch.tensor([0]))
    found.sum().backward()
    assert found.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
