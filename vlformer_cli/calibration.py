"""What a score means: its temperature, its calibration error, and the threshold below which nothing matches.

Letters: N samples. A score is the chosen query's probability of the referent's class; it is right where its mask is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15  # as Guo et al. 2017 (arXiv 1706.04599)
LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are tried
STEPS = 80  # of the search: each leaves 62 % of the interval
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


def rescaled(score_N: Scores, temperature: float) -> Scores:
    """The scores that logits divided by `temperature` give.

    >>> rescaled(np.array([0.5, 0.9]), 2.0).round(2).tolist()
    [0.5, 0.75]
    """
    score_N = score_N.clip(SURE, 1 - SURE)
    logit_N = np.log(score_N) - np.log1p(-score_N)
    return np.asarray(1 / (1 + np.exp(-logit_N / temperature)))


def fit_temperature(score_N: Scores, right_N: Flags) -> float:
    """The temperature that makes what happened most likely (Guo et al. 2017, section 4.2), by golden-section search.

    The likelihood has one maximum over the inverse temperature, so that the search finds it.
    """
    low, high, golden = 1 / HIGHEST, 1 / LOWEST, (5**0.5 - 1) / 2
    for _ in range(STEPS):
        one, two = high - golden * (high - low), low + golden * (high - low)
        if _surprise(score_N, right_N, 1 / one) < _surprise(score_N, right_N, 1 / two):
            high = two
        else:
            low = one
    return 2 / (low + high)


def _surprise(score_N: Scores, right_N: Flags, temperature: float) -> float:
    """Mean negative log-likelihood."""
    score_N = rescaled(score_N, temperature).clip(1e-300, 1 - 1e-16)
    return float(-np.where(right_N, np.log(score_N), np.log1p(-score_N)).mean())


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


def best_threshold(score_N: Scores, meant_N: Flags) -> float:
    """The score that parts expressions that mean something from the others best: the mean of N-acc and T-acc.

    An answer at the threshold itself counts as a match.

    >>> best_threshold(np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, False, True, True]))
    0.4
    """
    order = np.argsort(score_N)
    score_N, meant_N = score_N[order], meant_N[order]
    refused_N = np.concatenate([[0], np.cumsum(~meant_N)]) / max(1, int((~meant_N).sum()))
    kept_N = 1 - np.concatenate([[0], np.cumsum(meant_N)]) / max(1, int(meant_N.sum()))
    between = np.concatenate([[0.0], (score_N[1:] + score_N[:-1]) / 2, [1.0]])
    parts = np.concatenate([[True], score_N[1:] > score_N[:-1], [True]])  # no number lies between equal scores
    return float(between[int(np.argmax(np.where(parts, refused_N + kept_N, -1.0)))])
