"""Evaluation at the original resolution: the chosen query, and beside it the best of the Q queries.

Letters: N expressions about one picture, Q queries, H W pixels.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from vlformer_cli.data.dataset import images_of, ref_image, ref_mask
from vlformer_cli.data.rle import encode_mask
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.engine.checkpoint import PARTIAL
from vlformer_cli.engine.distributed import ALONE, World
from vlformer_cli.engine.predict import AT_ONCE, Predictor
from vlformer_cli.metrics import SampleScore, Summary, score, summarise_by, summarise_scores
from vlformer_cli.report.progress import ProgressLine
from vlformer_cli.types import RLE, Sample, VLFormerError


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One line of `predictions.jsonl`."""

    sample: Sample
    chosen: SampleScore
    best: SampleScore
    """Of the query whose mask overlaps the truth most: what choosing perfectly would give. With a `min_score` the empty
    mask that was answered can be it."""
    confidence: float
    segmentation: RLE
    cut: bool
    """Only the beginning of the expression was read."""

    def to_json(self) -> dict[str, Any]:
        """Areas in pixels, IoU as a fraction of 1."""
        return {
            "sent_id": self.sample.sent_id,
            "ref_id": self.sample.ref.ref_id,
            "image": self.sample.ref.image,
            "expression": self.sample.expression,
            "kind": self.sample.kind,
            "intersection": self.chosen.intersection,
            "union": self.chosen.union,
            "truth_area": self.chosen.truth_area,
            "iou": self.chosen.iou,
            "best_of_q_iou": self.best.iou,
            "score": self.confidence,
            "segmentation": self.segmentation,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `vlformer eval` found."""

    data: str
    summary: Summary
    best_of_q: Summary
    by_kind: dict[str, Summary]
    best_of_q_by_kind: dict[str, Summary]
    unreadable: tuple[str, ...]
    """Why pictures could not be read; their samples are not counted."""
    cut: int
    """Expressions longer than the model's context, of which only the beginning was read."""

    def to_json(self) -> dict[str, Any]:
        """The content of `metrics.json`; shares are fractions of 1."""
        return {
            "data": self.data,
            "chosen_query": self.summary.to_json(),
            "best_of_q": self.best_of_q.to_json(),
            "by_kind": {kind: summary.to_json() for kind, summary in self.by_kind.items()},
            "best_of_q_by_kind": {kind: summary.to_json() for kind, summary in self.best_of_q_by_kind.items()},
            "unreadable_images": list(self.unreadable),
            "cut_expressions": self.cut,
        }


def evaluate(
    predictor: Predictor,
    split: PreparedSplit,
    *,
    limit: int = 0,
    predictions: Path | None = None,
    title: str = "eval",
    world: World = ALONE,
) -> Evaluation:
    """Evaluates the first `limit` samples (0: all); writes a line per sample to `predictions`.

    In a job of several processes each takes its share of the pictures, and all get the whole result; `predictions`
    holds the lines of this process. Raises VLFormerError if there is no sample, or none of the pictures can be read.
    """
    parts = world.gather(_evaluate_share(predictor, split, limit, predictions, title, world))
    by_image = sorted((item for part in parts for item in part), key=lambda item: item.image)
    results = [pair for item in by_image for pair in item.scores]
    unreadable = tuple(item.unreadable for item in by_image if item.unreadable)
    if not results:
        raise VLFormerError(
            f"{split.name}: nothing to evaluate ({unreadable[0] if unreadable else 'the split is empty'})"
        )
    return _summarise(split.name, results, unreadable, sum(item.cut for item in by_image))


@dataclass(frozen=True, slots=True)
class _ImageScores:
    """What one picture came to; the chosen and the best query's score of each of its samples."""

    image: int
    scores: list[tuple[SampleScore, SampleScore]]
    cut: int = 0
    unreadable: str = ""


def _evaluate_share(
    predictor: Predictor, split: PreparedSplit, limit: int, predictions: Path | None, title: str, world: World
) -> list[_ImageScores]:
    """Every `world.size`-th picture, beginning with number `world.rank`."""
    items: list[_ImageScores] = []
    total = min(limit, len(split)) if limit else len(split)
    done, overlap_sum = 0, 0.0
    with ProgressLine(title, total, quiet=not world.is_first) as line, _lines(predictions) as file:
        for image, samples in itertools.islice(enumerate(images_of(split, limit)), world.rank, None, world.size):
            try:
                answered = list(_evaluate_image(predictor, split, samples))
            except VLFormerError as error:
                items.append(_ImageScores(image, [], unreadable=str(error)))
                continue
            scores = [(result.chosen, result.best) for result in answered]
            items.append(_ImageScores(image, scores, cut=sum(result.cut for result in answered)))
            for result in answered:
                file.write(json.dumps(result.to_json(), ensure_ascii=False) + "\n")
            done, overlap_sum = done + len(scores), overlap_sum + sum(chosen.iou for chosen, _ in scores)
            line.update(min(total, done * world.size), f"mIoU {100 * overlap_sum / done:.2f}")
    return items


def _evaluate_image(predictor: Predictor, split: PreparedSplit, samples: Sequence[Sample]) -> Iterator[SampleResult]:
    """All expressions about one picture; the picture is looked at once."""
    image_HW3 = ref_image(split, samples[0].ref)
    seen, size = predictor.look(image_HW3)
    for first in range(0, len(samples), AT_ONCE):
        chunk = samples[first : first + AT_ONCE]
        candidates, is_cut = predictor.ask(seen, size, image_HW3.shape[:2], [sample.expression for sample in chunk])
        every_query = torch.arange(candidates.score_NQ.shape[1])
        for number, sample in enumerate(chunk):
            masks_QHW = candidates.masks(number, every_query)
            truth_HW = ref_mask(sample.ref)
            query = int(candidates.chosen_N[number])
            confidence, answer_HW = float(candidates.score_NQ[number, query]), masks_QHW[query]
            if confidence < predictor.min_score:
                answer_HW = np.zeros_like(answer_HW)
            scores = [
                score(mask, truth_HW, sent_id=sample.sent_id, kind=sample.kind) for mask in (answer_HW, *masks_QHW)
            ]
            yield SampleResult(
                sample,
                chosen=scores[0],
                best=max(scores, key=lambda s: s.iou),  # what was answered too: it may be none of the queries
                confidence=confidence,
                segmentation=encode_mask(answer_HW),
                cut=is_cut[number],
            )


def _summarise(
    data: str, results: Iterable[tuple[SampleScore, SampleScore]], unreadable: tuple[str, ...], cut: int
) -> Evaluation:
    chosen, best = (list(scores) for scores in zip(*results, strict=True))
    has_kinds = any(one.kind for one in chosen)
    return Evaluation(
        data=data,
        summary=summarise_scores(chosen),
        best_of_q=summarise_scores(best),
        by_kind=summarise_by(chosen, lambda s: s.kind) if has_kinds else {},
        best_of_q_by_kind=summarise_by(best, lambda s: s.kind) if has_kinds else {},
        unreadable=unreadable,
        cut=cut,
    )


@contextmanager
def _lines(path: Path | None) -> Iterator[TextIO]:
    """What is written inside becomes the file, whole or not at all."""
    if path is None:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            yield nowhere
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{PARTIAL}", dir=path.parent)  # two evaluations at a time
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
