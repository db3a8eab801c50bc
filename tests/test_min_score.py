"""A score means a probability, and below the threshold nothing matches: in Python, in `predict`, in `eval`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from vlformer_cli.calibration import rescaled
from vlformer_cli.data.scenes.generate import Recipe, generate_scenes
from vlformer_cli.engine.checkpoint import load_weights, save_weights
from vlformer_cli.engine.predict import Predictor

WORDS = ["cup", "the spoon right of the saucer", "a thing"]


def test_temperature_and_shift_change_scores_alone(small_weights: Path) -> None:
    loaded, picture = load_weights(small_weights), cv2.resize(data.coffee(), (128, 96))
    plain = Predictor(loaded.model, loaded.config).predict(picture, WORDS)
    changed = replace(loaded.config, temperature=2.5, score_shift=-0.7)
    cooled = Predictor(loaded.model, changed).predict(picture, WORDS)
    for one, other in zip(plain, cooled, strict=True):
        assert other.score == pytest.approx(float(rescaled(np.array([one.score]), 2.5, -0.7)[0]), abs=1e-5)
        np.testing.assert_array_equal(one.mask, other.mask)


def test_below_the_threshold_the_mask_is_empty_and_at_it_is_not(small_weights: Path) -> None:
    loaded, picture = load_weights(small_weights), cv2.resize(data.coffee(), (128, 96))
    (plain,) = Predictor(loaded.model, loaded.config).predict(picture, WORDS[:1])
    assert plain.matches
    assert plain.mask.any()
    strict = replace(loaded.config, min_score=min(1.0, plain.score + 1e-3))
    (nothing,) = Predictor(loaded.model, strict).predict(picture, WORDS[:1])
    assert (nothing.matches, nothing.score, nothing.mask.any()) == (False, plain.score, False)
    assert nothing.mask.shape == (96, 128)
    (answered,) = Predictor(loaded.model, strict, min_score=plain.score).predict(picture, WORDS[:1])
    np.testing.assert_array_equal(answered.mask, plain.mask)


def test_the_threshold_travels_with_the_weights(small_weights: Path, tmp_path: Path) -> None:
    loaded = load_weights(small_weights)
    save_weights(
        tmp_path / "w.safetensors",
        loaded.model,
        replace(loaded.config, min_score=0.3, temperature=1.7),
        loaded.manifest,
    )
    again = load_weights(tmp_path / "w.safetensors")
    assert (again.config.min_score, again.config.temperature) == (0.3, 1.7)
    assert Predictor(again.model, again.config).min_score == 0.3


def test_predict_says_that_nothing_matches(
    run: Callable[..., int], small_weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "cup.png"), cv2.resize(data.coffee(), (128, 96)))
    words = ("predict", tmp_path / "cup.png", "red cup", "--weights", small_weights)
    assert run(*words, "--min-score", "1") == 0
    assert '"red cup" -> nothing matches (0 px, score 0.' in capfd.readouterr().out
    assert run(*words, "--min-score", "1", "--json") == 0
    (result,) = json.loads(capfd.readouterr().out)["results"]
    assert (result["matches"], result["area"], result["bbox"]) == (False, 0, [0, 0, 0, 0])
    assert not cv2.imread(result["mask"]).any()
    assert run(*words, "--min-score", "0", "--json") == 0
    (result,) = json.loads(capfd.readouterr().out)["results"]
    assert result["matches"]
    assert result["area"] > 0
    assert run(*words, "--min-score", "1.5") == 2


def test_eval_counts_what_means_nothing(
    run: Callable[..., int], small_weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    generate_scenes(tmp_path / "scenes", images=40, seed=3, recipe=Recipe(size=96, no_target=0.4), workers=1)
    words = ("eval", "--weights", small_weights, "--data", tmp_path / "scenes", "--split", "train", "--limit", "40")
    found = {}
    for threshold in ("0", "1"):
        assert run(*words, "--min-score", threshold, "--json") == 0
        found[threshold] = json.loads(capfd.readouterr().out)
    assert found["0"]["chosen_query"]["t_acc"] == 1
    assert found["0"]["chosen_query"]["n_acc"] < 0.2
    assert (found["1"]["chosen_query"]["t_acc"], found["1"]["chosen_query"]["n_acc"]) == (0, 1)
    nothing = found["1"]["by_kind"]["nothing"]
    assert found["1"]["chosen_query"]["miou"] == pytest.approx(nothing["count"] / 40)  # empty and empty: IoU 1
    assert found["1"]["min_score"] == 1
    for row in map(json.loads, Path("outputs/eval/predictions.jsonl").read_text().splitlines()):
        assert row["best_of_q_iou"] >= row["iou"]
    assert run(*words, "--min-score", "1") == 0
    assert "N-acc (empty where nothing is meant) 100.0, T-acc (not empty elsewhere) 0.00" in capfd.readouterr().out
