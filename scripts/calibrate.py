"""Fits what a model's scores mean, from what `vlformer eval --output DIR` wrote, and writes it into the weights file.

Temperature and shift make a score the probability that the mask is right (IoU > 0.5; none is where nothing is meant).
The threshold `min_score`, below which `predict` says that nothing matches, is as high as it can be while 98 % of the
right answers are kept. One half of the pictures is fitted to, the numbers that are printed and drawn are of the other:
of all files together and of each, as what is true of a mixture need not be true of its parts. Scenes made of the same
photographs are in both halves.

python scripts/calibrate.py WEIGHTS PREDICTIONS.jsonl... [--diagram FILE.png] [--dry-run]
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlformer_cli.calibration import (
    calibration_error,
    fit_scores,
    reliability,
    rescaled,
    restored,
    threshold_that_keeps,
)
from vlformer_cli.data.store import file_sha256
from vlformer_cli.engine.checkpoint import load_weights, save_weights

FEWEST = 20  # right and wrong answers in each half
KEPT = 0.98  # of right answers: to refuse one is worse than to answer where nothing is meant


@dataclass(frozen=True)
class Answers:
    """N answers of one model."""

    score_N: NDArray[np.float64]
    right_N: NDArray[np.bool_]
    meant_N: NDArray[np.bool_]
    source_N: NDArray[np.int64]
    """The number of the file that they are from."""

    def some(self, chosen_N: NDArray[np.bool_]) -> Answers:
        """Those that are chosen."""
        return Answers(self.score_N[chosen_N], self.right_N[chosen_N], self.meant_N[chosen_N], self.source_N[chosen_N])

    def scaled(self, temperature: float, shift: float) -> Answers:
        """With calibrated scores."""
        return replace(self, score_N=rescaled(self.score_N, temperature, shift))


def read(paths: list[Path], weights: Path, own: list[str]) -> tuple[Answers, NDArray[np.bool_], list[str]]:
    """All answers, their scores before any calibration, which belong to the half that is fitted to, and what each file
    is about. Exits where they are of other weights than `weights`, with the SHA-256 of `own` now and before.
    """
    scores, rows, names = [], list[dict[str, Any]](), list[str]()
    for path in paths:
        document = json.loads(path.with_name("metrics.json").read_text(encoding="utf-8"))
        if document["min_score"]:
            sys.exit(f"{path}: evaluated with --min-score {document['min_score']}; evaluate again without it")
        if (said := document["weights"])["sha256"] not in own:
            sys.exit(f"{path}: these are answers of {said['path']} (SHA-256 {said['sha256']}) and not of {weights}")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        said_N = np.array([row["score"] for row in lines])
        scores.append(restored(said_N, document["temperature"], document["score_shift"]))
        rows += lines
        names.append(document.get("data", str(path)))
    meant_N = np.array([row["truth_area"] > 0 for row in rows])
    right_N = np.array([row["iou"] > 0.5 for row in rows]) & meant_N
    half_N = np.array([zlib.crc32(row["image"].encode()) % 2 == 0 for row in rows])
    source_N = np.repeat(np.arange(len(scores)), [len(one) for one in scores])
    answers = Answers(np.concatenate(scores), right_N, meant_N, source_N)
    for half in (answers.some(half_N), answers.some(~half_N)):
        right = int(half.right_N.sum())
        if min(right, len(half.right_N) - right) < FEWEST:
            sys.exit(f"too few answers: each half needs {FEWEST} that are right and {FEWEST} that are wrong")
    return answers, half_N, names


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


def report(title: str, answers: Answers, threshold: float) -> None:
    """How far scores are from what is right, and what the threshold does to answers that nothing was fitted to."""
    meant_N, kept_N = answers.meant_N, answers.score_N >= threshold
    error, score, right = calibration_error(answers.score_N, answers.right_N), answers.score_N, answers.right_N
    print(
        f"{title}: {len(score)} answers, {percent(right)} right, mean score {percent(score)}, ECE {100 * error:.1f} %"
    )
    if not meant_N.all():
        print(f"  {int((~meant_N).sum())} mean nothing: N-acc {percent(~kept_N[~meant_N])}", end="")
        print(f", T-acc {percent(kept_N[meant_N])}" * bool(meant_N.any()))
    if right.any():
        print(f"  of right answers {percent(~kept_N[right])} are refused")


def percent(part_N: NDArray[Any]) -> str:
    """The mean, in percent."""
    return f"{100 * float(part_N.mean()):.1f} %"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("weights", type=Path)
    options.add_argument("predictions", type=Path, nargs="+")
    options.add_argument("--diagram", type=Path)
    options.add_argument("--dry-run", action="store_true", help="only print")
    given = options.parse_args()
    loaded = load_weights(given.weights)
    # SHA-256 of this file now, and of what it was before it got other calibrations
    own = [*loaded.manifest.get("calibrated_from", []), file_sha256(given.weights)]
    answers, half_N, names = read(given.predictions, given.weights, own)
    fitted, held = answers.some(half_N), answers.some(~half_N)
    (temperature, shift), threshold = fit_scores(fitted.score_N, fitted.right_N), loaded.config.min_score
    cooled, others = fitted.scaled(temperature, shift), held.scaled(temperature, shift)
    if fitted.meant_N.all():
        print("no expression means nothing: min_score stays as it was")
    else:
        threshold = threshold_that_keeps(cooled.score_N, cooled.right_N, KEPT)
    print(f"fitted to {len(fitted.score_N)} answers: temperature {temperature:.3f}, shift {shift:.3f}")
    print(f"min_score {threshold:.3f}")
    before, after = (100 * calibration_error(one.score_N, one.right_N) for one in (held, others))
    print(f"{len(held.score_N)} others: ECE {before:.2f} % as trained, {after:.2f} % calibrated")
    report("all", others, threshold)
    for number, name in enumerate(names):
        some = others.some(others.source_N == number)
        if len(some.score_N):
            report(name, some, threshold)
    if given.diagram:
        draw(held, others, given.diagram)
    if not given.dry_run:
        fitted_fields = {"temperature": temperature, "score_shift": shift, "min_score": threshold}
        config = replace(loaded.config, **{name: round(value, 3) for name, value in fitted_fields.items()})
        save_weights(given.weights, loaded.model, config, {**loaded.manifest, "calibrated_from": own})
        print(f"written: {given.weights}")


if __name__ == "__main__":
    main()
