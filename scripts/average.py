"""Averages the weights of two models, one fine-tuned from the other, into a file that holds both their manifests.

What the second learned anew and what the first knew better often survive together (Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models"). Scores have to be calibrated anew: scripts/calibrate.py.

python scripts/average.py FIRST.safetensors SECOND.safetensors --share 0.5 --output AVERAGE.safetensors
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from vlformer_cli.data.store import file_sha256
from vlformer_cli.engine.checkpoint import load_weights, save_weights
from vlformer_cli.engine.initialise import FREE_FIELDS
from vlformer_cli.engine.resume import differences
from vlformer_cli.tree import to_tree
from vlformer_cli.types import VLFormerError

LEAKS = ("clean", "unknown", "leaky")  # the worse, the later
UNCALIBRATED = {"temperature": 1.0, "score_shift": 0.0, "min_score": 0.0}


def average(first: Path, second: Path, share: float, output: Path) -> None:
    """`share` of the second and the rest of the first; the name and the config are the first's, without calibration.

    Raises VLFormerError where they are not one model with other weights.
    """
    if not 0 <= share <= 1:
        raise VLFormerError(f"--share is {share}: it is the second's part, from 0 to 1")
    one, other = load_weights(first), load_weights(second)
    plain, others = (replace(loaded.config, **UNCALIBRATED) for loaded in (one, other))
    changed = [text for text in differences(to_tree(plain), to_tree(others)) if text.split()[0] not in FREE_FIELDS]
    if changed:
        raise VLFormerError(f"{first} and {second} are different models: {'; '.join(changed)}")
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    mixed = {
        name: torch.lerp(tensor, theirs[name], share) if tensor.is_floating_point() else tensor
        for name, tensor in mine.items()
    }
    one.model.load_state_dict(mixed)
    parents = [
        {"path": str(path), "sha256": file_sha256(path), "share": part, "manifest": loaded.manifest}
        for path, part, loaded in ((first, 1 - share, one), (second, share, other))
    ]
    # what it was trained on is what both were trained on
    data = [source for loaded in (one, other) for source in loaded.manifest.get("data", [])]
    starts = [loaded.manifest.get("initialisation") or {} for loaded in (one, other)]
    start = max(({"leak": "unknown", **start} for start in starts), key=lambda start: LEAKS.index(start["leak"]))
    save_weights(output, one.model, plain, {"average_of": parents, "data": data, "initialisation": start})


def main() -> None:
    """The command line; exit code 1 with one line where it cannot be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="the second's part")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        average(args.first, args.second, args.share, args.output)
    except VLFormerError as error:
        sys.exit(f"average.py: {error}")
    print(f"written: {args.output}, SHA-256 {file_sha256(args.output)}")


if __name__ == "__main__":
    main()
