"""From expressions to token ids: CLIP's BPE as open_clip has it, with its own cleaning, cut to the context.

Punctuation at the end is left out, as RefCOCO's cleaned sentences have none: "red cup." means what "red cup" means.

Letters: N expressions, T word tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

AT_THE_END = re.compile(r"[\s.,;:!?]+$")


def tokenize(expressions: Sequence[str], max_tokens: int) -> tuple[Tensor, list[bool]]:
    """Token ids NT (int64, zero-padded, T no longer than the longest needs) and whether each was cut."""
    tokenizer = _tokenizer()
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    rows, is_cut = [], []
    for expression in expressions:
        ids = tokenizer.encode(AT_THE_END.sub("", expression) or expression)
        is_cut.append(len(ids) > max_tokens - 2)
        rows.append([start, *ids[: max_tokens - 2], end])
    tokens = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return tokens, is_cut


@functools.cache
def _tokenizer():  # type: ignore[no-untyped-def]
    from open_clip import SimpleTokenizer

    return SimpleTokenizer()
