"""Temperature, calibration error and threshold against scipy, sampled truths and exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from vlformer_cli.calibration import (
    calibration_error,
    fit_scores,
    reliability,
    rescaled,
    restored,
    threshold_that_keeps,
)


def samples(temperature: float, shift: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are spoiled by a known temperature and shift, and what happened."""
    rng = np.random.default_rng(0)
    true_N = rng.beta(2, 1, count)
    return expit((logit(true_N) - shift) * temperature), rng.random(count) < true_N


@pytest.mark.parametrize(("temperature", "shift"), [(0.5, 0.0), (1.0, -2.0), (3.0, 1.0)])
def test_the_temperature_and_shift_are_found_that_scores_were_spoiled_with(temperature: float, shift: float) -> None:
    score_N, right_N = samples(temperature, shift)
    found = fit_scores(score_N, right_N)
    assert found[0] == pytest.approx(temperature, rel=0.05)
    assert found[1] == pytest.approx(shift, abs=0.07)

    def surprise(weights: np.ndarray) -> float:
        x_N = logit(score_N.clip(1e-7, 1 - 1e-7)) * weights[0] + weights[1]
        return float(np.where(right_N, np.logaddexp(0, -x_N), np.logaddexp(0, x_N)).mean())

    best = minimize(surprise, [1.0, 0.0], method="BFGS", tol=1e-9).x
    assert found[0] == pytest.approx(1 / best[0], rel=1e-3)
    assert found[1] == pytest.approx(best[1], abs=1e-3)


def test_answers_that_a_score_parts_without_a_fault_do_no_harm() -> None:
    score_N = np.linspace(0.1, 0.9, 50)
    temperature, shift = fit_scores(score_N, score_N > 0.5)
    assert np.isfinite([temperature, shift]).all()
    assert temperature > 0


def test_calibrated_scores_have_a_small_error_and_spoiled_ones_a_large_one() -> None:
    score_N, right_N = samples(3.0, 1.0)
    assert calibration_error(rescaled(score_N, 3.0, 1.0), right_N) < 0.02
    assert calibration_error(score_N, right_N) > 0.05
    np.testing.assert_allclose(restored(rescaled(score_N, 3.0, 1.0), 3.0, 1.0), score_N.clip(1e-7, 1 - 1e-7), atol=1e-5)
    by_hand = 0.0
    for low in np.arange(15) / 15:
        inside = (score_N >= low) & (score_N < low + 1 / 15)
        if inside.any():
            by_hand += inside.mean() * abs(score_N[inside].mean() - right_N[inside].mean())
    assert calibration_error(score_N, right_N) == pytest.approx(by_hand, abs=1e-9)
    assert sum(one.count for one in reliability(score_N, right_N)) == len(score_N)


def test_scores_of_exactly_zero_and_one_do_no_harm() -> None:
    score_N, right_N = np.array([0.0, 1.0, 1.0, 0.4]), np.array([False, True, False, True])
    assert np.isfinite(fit_scores(score_N, right_N)).all()
    assert np.isfinite(rescaled(score_N, 0.1)).all()
    assert calibration_error(score_N, right_N) >= 0


def test_the_threshold_keeps_the_share_of_right_answers_and_no_more_than_it_must() -> None:
    rng = np.random.default_rng(1)
    for count in (7, 400):
        right_N = rng.random(count) < 0.7
        score_N = expit(rng.normal(size=count) + right_N)
        for share in (0.5, 0.9, 0.98, 1.0):
            found = threshold_that_keeps(score_N, right_N, share)
            assert (score_N[right_N] >= found).mean() >= share
            higher = score_N[right_N & (score_N > found)]
            if len(higher):
                assert (score_N[right_N] >= higher.min()).mean() < share
