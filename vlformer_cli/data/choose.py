"""Which refs of a split to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.types import Ref, VLFormerError


def random_refs(split: PreparedSplit, count: int, seed: int) -> list[Ref]:
    """`count` different refs, or all where there are fewer; the same for the same seed."""
    rows = np.random.default_rng(seed).permutation(split.num_refs)[:count]
    return [split.ref(int(row)) for row in rows]


def refs_by_id(split: PreparedSplit, ref_ids: Sequence[int]) -> list[Ref]:
    """The refs with these ids, in this order; raises VLFormerError for an id that the split does not have."""
    found: dict[int, Ref] = {}
    for row in range(split.num_refs):
        if len(found) == len(set(ref_ids)):
            break
        ref = split.ref(row)
        if ref.ref_id in ref_ids:
            found[ref.ref_id] = ref
    missing = [str(ref_id) for ref_id in ref_ids if ref_id not in found]
    if missing:
        raise VLFormerError(f"{split.name} has no ref {', '.join(missing)}: see the ref_id in {split.split}.jsonl")
    return [found[ref_id] for ref_id in ref_ids]
