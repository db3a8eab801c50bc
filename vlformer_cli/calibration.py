"""What a score means: its temperature and shift, its calibration error, and the threshold below which nothing matches.

Letters: N samples. A score is the chosen query's probability of the referent's class; it is right where its mask is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15  # as Guo et al. 2017 (arXiv 1706.04599)
STEPS = 60  # of Newton's method, at most; a dozen are enough
LARGEST_STEP = 1.0  # of each of its two numbers, so that it cannot run away from answers that are easily told apart
LEAST_SLOPE = 0.02
SURE = 1e-7  # scores are kept this far from 0 and 1, where they have no logit

Scores = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples whose scores lie in one interval."""

    count: int
    mean_score: float
    right: float
    """The share that is right."""


def logit(score_N: Scores) -> Scores:
    """The inverse of the logistic function.

    >>> logit(np.array([0.5, 0.9])).round(3).tolist()
    [0.0, 2.197]
    """
    score_N = score_N.clip(SURE, 1 - SURE)
    return np.asarray(np.log(score_N) - np.log1p(-score_N))


def rescaled(score_N: Scores, temperature: float, shift: float = 0.0) -> Scores:
    """The scores that logits give which are divided by `temperature`, and then shifted.

    >>> rescaled(np.array([0.5, 0.9]), 2.0).round(2).tolist()
    [0.5, 0.75]
    """
    return np.asarray(1 / (1 + np.exp(-(logit(score_N) / temperature + shift))))


def restored(score_N: Scores, temperature: float, shift: float) -> Scores:
    """The inverse of `rescaled`: the scores before.

    >>> restored(rescaled(np.array([0.2, 0.9]), 2.0, 1.0), 2.0, 1.0).round(6).tolist()
    [0.2, 0.9]
    """
    return np.asarray(1 / (1 + np.exp(-(logit(score_N) - shift) * temperature)))


def fit_scores(score_N: Scores, right_N: Flags) -> tuple[float, float]:
    """Temperature and shift that make what happened most likely (Platt 1999; the temperature alone: Guo et al. 2017).

    A logistic regression on one number, by Newton's method; the likelihood has one maximum.
    """
    x_NC = np.stack([logit(score_N), np.ones(len(score_N))], 1)
    weight_C = np.array([1.0, 0.0])
    for _ in range(STEPS):
        score = 1 / (1 + np.exp(-x_NC @ weight_C))
        slope_C = x_NC.T @ (right_N - score)
        curve_CC = (x_NC * (score * (1 - score))[:, None]).T @ x_NC + 1e-9 * np.eye(2)
        step_C = np.linalg.solve(curve_CC, slope_C).clip(-LARGEST_STEP, LARGEST_STEP)
        weight_C = weight_C + step_C
        if np.abs(step_C).max() < 1e-10:
            break
    return 1 / max(float(weight_C[0]), LEAST_SLOPE), float(weight_C[1])


def reliability(score_N: Scores, right_N: Flags) -> list[Bin]:
    """The samples in 15 intervals of equal width; those without samples are left out."""
    place_N = np.minimum((score_N * BINS).astype(np.int64), BINS - 1)
    bins = (place_N == number for number in range(BINS))
    return [
        Bin(int(chosen.sum()), float(score_N[chosen].mean()), float(right_N[chosen].mean()))
        for chosen in bins
        if chosen.any()
    ]


def calibration_error(score_N: Scores, right_N: Flags) -> float:
    """ECE: how far scores are from the share that is right, over 15 bins weighted by their samples.

    >>> calibration_error(np.array([0.8, 0.8, 0.8, 0.8]), np.array([True, True, True, False])).__round__(3)
    0.05
    """
    bins = reliability(score_N, right_N)
    return sum(one.count * abs(one.mean_score - one.right) for one in bins) / len(score_N)


def threshold_that_keeps(score_N: Scores, right_N: Flags, share: float) -> float:
    """The highest score at which at least this share of the right answers score as much or more.

    >>> threshold_that_keeps(np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, True, True, True]), 0.6)
    0.6
    """
    ranked = np.sort(score_N[right_N])
    return float(ranked[min(len(ranked) - 1, int(len(ranked) * (1 - share) + 1e-9))])
