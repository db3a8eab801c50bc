"""Whether answers follow the words: location and relation expressions as they are, and with those words taken out.

"red cup left of the bottle" becomes "red cup", "the second of the cups from the left" "cup". What is left is mostly
true of several things, so that a model that reads falls to picking one of them.

python scripts/controls.py WEIGHTS DATA_DIR SPLIT [LIMIT]     # a data set of `vlformer prepare-data scenes`
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from itertools import chain
from pathlib import Path

import numpy as np

from vlformer_cli.data.dataset import images_of, ref_mask
from vlformer_cli.data.images import read_image
from vlformer_cli.data.scenes import words
from vlformer_cli.data.scenes.objects import KINDS
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.engine.checkpoint import load_weights
from vlformer_cli.engine.device import set_threads
from vlformer_cli.engine.predict import Predictor
from vlformer_cli.metrics import overlap

ASKED = ("location", "relation")


def place_phrases() -> list[str]:
    """All that says where in the group or the picture, the longest first."""
    tables = (words.FAR_BEFORE, words.FAR_AFTER, words.SIDE_BEFORE, words.SIDE_AFTER)
    found = set(chain.from_iterable(chain.from_iterable(table.values() for table in tables)))
    found |= {phrase for before, after in words.MIDDLES.values() for phrase in (*before, *after)}
    found |= set(chain.from_iterable(words.RANKS.values()))
    for edge in ("top", "bottom"):
        for side in ("left", "right"):
            for above in words.SIDE_BEFORE[edge]:
                corner = f"{above} {side}"
                found |= {corner, *(f"{link} {corner}" for link in ("in the", "at", "on the"))}
                found |= {f"in the {corner} corner"}
    found |= {f"{link} {side}" for link in ("from the", "from") for side in ("left", "right", "top", "bottom")}
    return sorted(found, key=len, reverse=True)


def stripped(text: str) -> str:
    """The expression without where it is and what it is next to.

    >>> stripped("the cup that is left of the bottle"), stripped("third of the three cups from the left")
    ('the cup', 'cup')
    >>> stripped("please find the key in the lower left corner"), stripped("of the two kites, the left one")
    ('please find the key', 'kite')
    """
    for phrase in sorted(chain.from_iterable(words.RELATION_WORDS.values()), key=len, reverse=True):
        at = re.search(rf"(?<!\S){phrase} (?=(the )?\S)", text)
        if at and not text[: at.start()].rstrip().endswith(("the", "of")):
            text = text[: at.start()]
            break
    group = re.search(r"of the (?!image|picture)(?:(?:two|three|four|five) )?([a-z -]+?)(?:, the .*| from .*|$)", text)
    if group:
        return _singular(group[1].strip())
    for phrase in place_phrases():
        text = re.sub(rf"(?<!\S){phrase}(?!\S)", " ", text)
    text = re.sub(r"(that|which) is\s*$", " ", " ".join(text.split()))
    return " ".join(text.split()) or "thing"


def _singular(word: str) -> str:
    known = {
        *KINDS,
        *words.KIND_WORDS,
        *chain.from_iterable(words.KIND_WORDS.values()),
        "bench",
        "bus",
        "skis",
        "scissors",
    }
    return {words.plural(kind): kind for kind in known}.get(word, word.removesuffix("s"))


def main(weights: Path, directory: Path, split: str, limit: int = 0) -> None:
    set_threads(0)
    loaded = load_weights(weights)
    predictor = Predictor(loaded.model, loaded.config, min_score=0.0)
    data, found = PreparedSplit(directory, split), defaultdict(list)
    for samples in images_of(data, limit):
        chosen = [sample for sample in samples if sample.kind in ASKED]
        if not chosen:
            continue
        picture = read_image(data.image_path(samples[0].ref))
        asked = [sample.expression for sample in chosen]
        whole, bare = predictor.predict(picture, asked), predictor.predict(picture, [stripped(text) for text in asked])
        for sample, one, other in zip(chosen, whole, bare, strict=True):
            truth = ref_mask(sample.ref)
            found[sample.kind].append((overlap(one.mask, truth).iou, overlap(other.mask, truth).iou))
    print("| kind | samples | mIoU | without the words of place | Pr@0.5 | without |\n|---|---|---|---|---|---|")
    for kind in sorted(found):
        iou_N2 = np.array(found[kind])
        miou, right = 100 * iou_N2.mean(0), 100 * (iou_N2 > 0.5).mean(0)
        print(f"| {kind} | {len(iou_N2)} | {miou[0]:.1f} | {miou[1]:.1f} | {right[0]:.1f} | {right[1]:.1f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
