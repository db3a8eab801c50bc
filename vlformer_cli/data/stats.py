"""What is in a prepared split: counts and the values that histograms are drawn of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vlformer_cli.data.rle import rle_area
from vlformer_cli.data.store import PreparedSplit


@dataclass(slots=True)
class SplitStats:
    """Counts over one split."""

    name: str
    refs: int = 0
    images: int = 0
    expressions: int = 0
    no_target: int = 0
    """Expressions that mean nothing in their picture."""
    multi_target: int = 0
    """Expressions that mean several annotations."""
    words: Counter[int] = field(default_factory=Counter)
    """Expressions by their number of words, parted by white space."""
    categories: Counter[str] = field(default_factory=Counter)
    """Refs by category."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Expressions by kind; empty where the data set has none."""
    mask_shares: list[float] = field(default_factory=list)
    """For each ref with a mask, its area as a fraction of the picture."""

    def to_json(self) -> dict[str, Any]:
        """The counts, with mask areas as deciles."""
        shares = sorted(self.mask_shares)
        deciles = [shares[(len(shares) - 1) * tenth // 10] for tenth in range(11)] if shares else []
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "mask_shares"}
        for name in ("words", "categories", "kinds"):
            plain[name] = dict(sorted(plain[name].items(), key=lambda item: (-item[1], item[0])))
        plain["words"] = {str(count): self.words[count] for count in sorted(self.words)}
        return {**plain, "mask_share_deciles": deciles}


def split_stats(split: PreparedSplit) -> SplitStats:
    """Reads every ref once; memory grows with the number of refs by one float each."""
    stats = SplitStats(split.name, images=split.num_images)
    for row in range(split.num_refs):
        ref = split.ref(row)
        count = len(ref.expressions)
        stats.refs += 1
        stats.expressions += count
        stats.no_target += count * (ref.segmentation is None)
        stats.multi_target += count * (len(ref.ann_ids) > 1)
        stats.words.update(len(expression.split()) for expression in ref.expressions)
        stats.categories[ref.category or "(none)"] += 1
        stats.kinds.update(ref.kinds)
        if ref.segmentation is not None:
            stats.mask_shares.append(rle_area(ref.segmentation) / (ref.width * ref.height))
    return stats
