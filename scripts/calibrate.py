"""Fits what a model's scores mean, from what `vlformer eval --output DIR` wrote, and writes it into the weights file.

The temperature makes a score the probability that the mask is right (IoU > 0.5; where nothing is meant, no mask is).
The threshold `min_score`, below which `predict` says that nothing matches, parts expressions that mean something from
those that mean nothing as well as one number can (the mean of N-acc and T-acc). One half of the pictures is fitted to,
the numbers that are printed and drawn are of the other.

python scripts/calibrate.py WEIGHTS PREDICTIONS.jsonl... [--diagram FILE.png] [--dry-run]
"""

from __future__ import annotations

import argparse
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlformer_cli.calibration import best_threshold, calibration_error, fit_temperature, reliability, rescaled
from vlformer_cli.engine.checkpoint import load_weights, save_weights


@dataclass(frozen=True)
class Answers:
    """N answers of one model."""

    score_N: NDArray[np.float64]
    right_N: NDArray[np.bool_]
    meant_N: NDArray[np.bool_]

    def some(self, chosen_N: NDArray[np.bool_]) -> Answers:
        """Those that are chosen."""
        return Answers(self.score_N[chosen_N], self.right_N[chosen_N], self.meant_N[chosen_N])

    def scaled(self, temperature: float) -> Answers:
        """With the scores of another temperature."""
        return replace(self, score_N=rescaled(self.score_N, temperature))


def read(paths: list[Path], fitted_with: float) -> tuple[Answers, NDArray[np.bool_]]:
    """All answers, their scores as with temperature 1, and which belong to the half that is fitted to."""
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    meant_N = np.array([row["ref_id"] >= 0 and row["kind"] != "nothing" for row in rows])
    right_N = np.array([row["iou"] > 0.5 for row in rows]) & meant_N
    score_N = rescaled(np.array([row["score"] for row in rows]), 1 / fitted_with)
    half_N = np.array([zlib.crc32(row["image"].encode()) % 2 == 0 for row in rows])
    return Answers(score_N, right_N, meant_N), half_N


def draw(before: Answers, after: Answers, path: Path) -> None:
    """Reliability diagrams side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, answers) in zip(
        figure.subplots(1, 2), (("as trained", before), ("calibrated", after)), strict=True
    ):
        bins = reliability(answers.score_N, answers.right_N)
        most = max(one.count for one in bins)
        axes.plot([0, 1], [0, 1], color="#b0b4bb", linewidth=1)
        axes.bar([one.mean_score for one in bins], [one.count / most for one in bins], width=0.03, color="#e2e4e8")
        axes.plot([one.mean_score for one in bins], [one.right for one in bins], "o-", color="#1478ff")
        error = 100 * calibration_error(answers.score_N, answers.right_N)
        axes.set_title(f"{title}: ECE {error:.1f} %", loc="left", fontsize=11)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score (gray: how many samples)", ylabel="share that is right")
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def report(name: str, answers: Answers, threshold: float) -> None:
    error = 100 * calibration_error(answers.score_N, answers.right_N)
    meant_N, kept_N = answers.meant_N, answers.score_N >= threshold
    n_acc = f"{100 * float((~kept_N[~meant_N]).mean()):.1f}" if not meant_N.all() else "-"
    print(
        f"{name}: {len(meant_N)} samples, {int((~meant_N).sum())} mean nothing; ECE {error:.2f} %; at {threshold:.3f} "
        f"N-acc {n_acc}, T-acc {100 * float(kept_N[meant_N].mean()):.1f}, right ones refused "
        f"{100 * float((~kept_N[answers.right_N]).mean()):.1f}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("weights", type=Path)
    options.add_argument("predictions", type=Path, nargs="+")
    options.add_argument("--diagram", type=Path)
    options.add_argument("--dry-run", action="store_true", help="only print")
    given = options.parse_args()
    loaded = load_weights(given.weights)
    answers, half_N = read(given.predictions, loaded.config.temperature)
    fitted, held = answers.some(half_N), answers.some(~half_N)
    temperature = fit_temperature(fitted.score_N, fitted.right_N)
    cooled = fitted.scaled(temperature)
    threshold = best_threshold(cooled.score_N, cooled.meant_N)
    print(f"temperature {temperature:.3f}, min_score {threshold:.3f}, fitted to {len(fitted.score_N)} samples")
    report("others, as trained", held, threshold)
    report("others, calibrated", held.scaled(temperature), threshold)
    if given.diagram:
        draw(held, held.scaled(temperature), given.diagram)
    if not given.dry_run:
        config = replace(loaded.config, temperature=round(temperature, 3), min_score=round(threshold, 3))
        save_weights(given.weights, loaded.model, config, loaded.manifest)
        print(f"written: {given.weights}")


if __name__ == "__main__":
    main()
