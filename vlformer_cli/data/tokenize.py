"""From expressions to token ids: CLIP's BPE as open_clip has it, with its own cleaning and ours, cut to the context.

`plain_words` comes after open_clip's cleaning, which resolves HTML entities and curly quotation marks.

Letters: N expressions, T word tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vlformer_cli.data.text import plain_words


def tokenize(expressions: Sequence[str], max_tokens: int) -> tuple[Tensor, list[bool]]:
    """Token ids NT (int64, zero-padded, T no longer than the longest needs) and whether each was cut."""
    tokenizer = _tokenizer()
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    rows, is_cut = [], []
    for expression in expressions:
        ids = tokenizer.encode(expression)
        is_cut.append(len(ids) > max_tokens - 2)
        rows.append([start, *ids[: max_tokens - 2], end])
    tokens = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
    return tokens, is_cut


@functools.cache
def _tokenizer():  # type: ignore[no-untyped-def]
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    clean = tokenizer.clean_fn
    tokenizer.clean_fn = lambda text: plain_words(clean(text))
    return tokenizer
