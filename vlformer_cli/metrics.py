"""How good a mask is: oIoU, mIoU, Pr@X, and N-acc and T-acc where some expressions mean nothing in the picture.

Letters: H W pixels, N samples. All shares are fractions of 1; printing them in percent is left to the reports.

Conventions, where the published evaluations differ:

- both masks empty (union 0): IoU 1, and nothing is added to the sums of oIoU (ReLA; the original VLFormer too);
- nothing is meant but something is predicted: IoU 0, and the predicted area is added to the sum of unions (as ReLA);
- Pr@X counts `IoU > X`, strictly (as VLFormer and CRIS; LAVT and ReLA take >=), over the samples that mean something
  (as ReLA; on data sets without no-target expressions these are all samples).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlformer_cli.types import VLFormerError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""X of Pr@X."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """How far two masks coincide, in pixels."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


@dataclass(frozen=True, slots=True)
class SampleScore:
    """What one prediction adds to the metrics; areas in pixels."""

    sent_id: int
    intersection: int
    union: int
    mask_area: int
    """0: the model says that nothing is meant."""
    truth_area: int
    """0: nothing is meant."""
    kind: str = ""

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks are empty."""
        return Overlap(self.intersection, self.union).iou


@dataclass(frozen=True, slots=True)
class Summary:
    """The metrics of a set of samples, as fractions of 1."""

    count: int
    """Samples, those that mean nothing included."""
    oiou: float
    """Sum of intersections over sum of unions ("cIoU"); 1 where all unions are 0."""
    miou: float
    """Mean of the samples' IoU ("gIoU")."""
    precision: dict[float, float]
    """Pr@X for each X of `THRESHOLDS`; empty where every sample is a no-target one."""
    n_acc: float | None = None
    """Share of the no-target samples with an empty mask; None without such samples."""
    t_acc: float | None = None
    """Share of the other samples with a non-empty mask; None without no-target samples, or with nothing else."""

    def to_json(self) -> dict[str, Any]:
        """One flat dict: count, oiou, miou, pr@0.5 ... pr@0.9 and, where they apply, n_acc and t_acc."""
        row: dict[str, Any] = {"count": self.count, "oiou": self.oiou, "miou": self.miou}
        row |= {f"pr@{x}": share for x, share in self.precision.items()}
        return row | {k: v for k, v in (("n_acc", self.n_acc), ("t_acc", self.t_acc)) if v is not None}


def area(mask_HW: NDArray[np.bool_]) -> int:
    """Pixels of a boolean mask.

    >>> area(np.array([[True, False], [True, True]]))
    3
    """
    return int(np.count_nonzero(mask_HW))  # numpy 2 gives its own integer type, which json refuses


def overlap(mask_HW: NDArray[np.bool_], truth_HW: NDArray[np.bool_]) -> Overlap:
    """Intersection and union of two boolean masks of one size; raises VLFormerError where the sizes differ.

    >>> pair = overlap(np.array([[True, True, False]]), np.array([[False, True, True]]))
    >>> pair, round(pair.iou, 3)
    (Overlap(intersection=1, union=3), 0.333)
    """
    if mask_HW.shape != truth_HW.shape:
        raise VLFormerError(
            f"masks of sizes {mask_HW.shape} and {truth_HW.shape} cannot be compared: resize the prediction"
        )
    intersection = area(mask_HW & truth_HW)
    return Overlap(intersection, area(mask_HW) + area(truth_HW) - intersection)


def score(mask_HW: NDArray[np.bool_], truth_HW: NDArray[np.bool_], *, sent_id: int, kind: str = "") -> SampleScore:
    """The record of one prediction; an empty `truth_HW` is an expression that means nothing in the picture.

    >>> score(np.array([[True, False]]), np.array([[True, True]]), sent_id=7)
    SampleScore(sent_id=7, intersection=1, union=2, mask_area=1, truth_area=2, kind='')
    """
    pair = overlap(mask_HW, truth_HW)
    return SampleScore(sent_id, pair.intersection, pair.union, area(mask_HW), area(truth_HW), kind)


def summarise(
    intersections: ArrayLike,
    unions: ArrayLike,
    *,
    mask_empty: ArrayLike | None = None,
    truth_empty: ArrayLike | None = None,
) -> Summary:
    """The metrics over N samples, given as N intersections and N unions in pixels.

    `mask_empty` and `truth_empty` (N booleans each) tell the no-target samples apart; without them every sample is
    taken to mean something. Raises VLFormerError where there are no samples or the lengths differ.

    >>> summary = summarise([50, 0], [100, 300])
    >>> summary.oiou, summary.miou, summary.precision[0.5]
    (0.125, 0.25, 0.0)
    >>> summarise([90, 0], [100, 0], mask_empty=[False, True], truth_empty=[False, True]).n_acc
    1.0
    """
    inter_N, union_N = np.asarray(intersections, dtype=np.int64), np.asarray(unions, dtype=np.int64)
    count = len(inter_N)
    mask_empty_N = np.zeros(count, bool) if mask_empty is None else np.asarray(mask_empty, dtype=bool)
    truth_empty_N = np.zeros(count, bool) if truth_empty is None else np.asarray(truth_empty, dtype=bool)
    lengths = {len(inter_N), len(union_N), len(mask_empty_N), len(truth_empty_N)}
    if len(lengths) != 1 or not count:
        raise VLFormerError(f"metrics need one or more samples and equally long lists, not lengths {sorted(lengths)}")
    iou_N = np.where(union_N > 0, inter_N / np.maximum(union_N, 1), 1.0)
    targeted_N = ~truth_empty_N
    has_both = bool(truth_empty_N.any()) and bool(targeted_N.any())
    return Summary(
        count=count,
        oiou=Overlap(int(inter_N.sum()), int(union_N.sum())).iou,
        miou=float(iou_N.mean()),
        precision={x: float((iou_N[targeted_N] > x).mean()) for x in THRESHOLDS} if targeted_N.any() else {},
        n_acc=float(mask_empty_N[truth_empty_N].mean()) if truth_empty_N.any() else None,
        t_acc=float((~mask_empty_N[targeted_N]).mean()) if has_both else None,
    )


def summarise_scores(scores: Sequence[SampleScore]) -> Summary:
    """The metrics over the records of `score`; raises VLFormerError where there are none.

    >>> summarise_scores([SampleScore(1, 3, 4, 3, 4)]).miou
    0.75
    """
    return summarise(
        [s.intersection for s in scores],
        [s.union for s in scores],
        mask_empty=[s.mask_area == 0 for s in scores],
        truth_empty=[s.truth_area == 0 for s in scores],
    )


def summarise_by(scores: Iterable[SampleScore], key: Callable[[SampleScore], str]) -> dict[str, Summary]:
    """The metrics of each group of samples that share `key(score)`, sorted by name; empty without samples.

    >>> scores = [SampleScore(1, 1, 2, 1, 2, "location"), SampleScore(2, 3, 4, 3, 4, "attribute")]
    >>> {kind: group.miou for kind, group in summarise_by(scores, lambda s: s.kind).items()}
    {'attribute': 0.75, 'location': 0.5}
    """
    groups: dict[str, list[SampleScore]] = {}
    for one in scores:
        groups.setdefault(key(one), []).append(one)
    return {name: summarise_scores(groups[name]) for name in sorted(groups)}
