"""Temperature, calibration error and threshold against scipy, sampled truths and exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from vlformer_cli.calibration import best_threshold, calibration_error, fit_temperature, reliability, rescaled


def samples(temperature: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are too sure by a known temperature, and what happened."""
    rng = np.random.default_rng(0)
    true_N = rng.beta(2, 1, count)
    return expit(logit(true_N) * temperature), rng.random(count) < true_N


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_that_scores_were_spoiled_with(temperature: float) -> None:
    score_N, right_N = samples(temperature)
    found = fit_temperature(score_N, right_N)
    assert found == pytest.approx(temperature, rel=0.05)

    def surprise(inverse: float) -> float:
        return float(
            -np.log(np.where(right_N, expit(logit(score_N) * inverse), expit(-logit(score_N) * inverse))).mean()
        )

    assert found == pytest.approx(1 / minimize_scalar(surprise, bounds=(0.05, 20), method="bounded").x, rel=1e-3)


def test_calibrated_scores_have_a_small_error_and_spoiled_ones_a_large_one() -> None:
    score_N, right_N = samples(3.0)
    assert calibration_error(rescaled(score_N, 3.0), right_N) < 0.02
    assert calibration_error(score_N, right_N) > 0.1
    by_hand = 0.0
    for low in np.arange(15) / 15:
        inside = (score_N >= low) & (score_N < low + 1 / 15)
        if inside.any():
            by_hand += inside.mean() * abs(score_N[inside].mean() - right_N[inside].mean())
    assert calibration_error(score_N, right_N) == pytest.approx(by_hand, abs=1e-9)
    assert sum(one.count for one in reliability(score_N, right_N)) == len(score_N)


def test_scores_of_exactly_zero_and_one_do_no_harm() -> None:
    score_N, right_N = np.array([0.0, 1.0, 1.0, 0.4]), np.array([False, True, False, True])
    assert np.isfinite(fit_temperature(score_N, right_N))
    assert np.isfinite(rescaled(score_N, 0.1)).all()
    assert calibration_error(score_N, right_N) >= 0


def accuracy_of(score_N: np.ndarray, meant_N: np.ndarray, threshold: float) -> float:
    return float((score_N[meant_N] >= threshold).mean() + (score_N[~meant_N] < threshold).mean())


def test_the_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(1)
    meant_N = rng.random(400) < 0.7
    score_N = expit(rng.normal(size=400) + 1.2 * meant_N)

    found = best_threshold(score_N, meant_N)
    best = max(accuracy_of(score_N, meant_N, threshold) for threshold in np.linspace(0, 1, 20_001))
    assert accuracy_of(score_N, meant_N, found) == pytest.approx(best, abs=1e-9)
    tied_N = score_N.round(1)
    assert accuracy_of(tied_N, meant_N, best_threshold(tied_N, meant_N)) == pytest.approx(
        max(accuracy_of(tied_N, meant_N, t) for t in np.linspace(0, 1.01, 203)), abs=1e-9
    )
    assert best_threshold(np.array([1.0, 1.0, 0.2]), np.array([False, True, True])) == 0.0
    assert best_threshold(score_N, np.ones(400, bool)) == 0.0  # nothing is refused where nothing needs to be
