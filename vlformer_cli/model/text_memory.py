"""Hidden states of expressions that a frozen text tower has read before.

Letters: N expressions, T word tokens, C the tower's width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

ROWS, LENGTH_STEP = 8, 8
"""Expressions run so many at a time, at a length that is a multiple of this: an expression's states are then the same,
bit for bit, whichever others are read with it, so that a resumed run, which remembers nothing, computes the same."""


class Memory:
    """The states of the expressions that were asked for last, in main memory."""

    def __init__(self, size: int, *, context: int) -> None:
        """`size`: expressions. `context`: the longest text that the tower reads, in tokens."""
        self.size, self.context = size, context
        self._states: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def read(self, token_NT: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """NTC, zero after the end of each text. `compute` gives the states NTC of tokens NT."""
        ends = token_NT.argmax(1).tolist()  # the end of text has the highest id
        texts = [tuple(row[: end + 1]) for row, end in zip(token_NT.tolist(), ends, strict=True)]
        found = {text: self._states[text] for text in texts if text in self._states}
        found |= self._compute([text for text in dict.fromkeys(texts) if text not in found], compute, token_NT.device)
        for text in texts:
            self._states[text] = found[text]
            self._states.move_to_end(text)
        while len(self._states) > self.size:
            self._states.popitem(last=False)
        one_TC = next(iter(found.values()))
        states_NTC = one_TC.new_zeros(*token_NT.shape, one_TC.shape[-1])
        for row, text in enumerate(texts):
            states_NTC[row, : len(text)] = found[text]
        return states_NTC.to(token_NT.device)

    def _compute(
        self, texts: list[tuple[int, ...]], compute: Callable[[Tensor], Tensor], device: torch.device
    ) -> dict[tuple[int, ...], Tensor]:
        found: dict[tuple[int, ...], Tensor] = {}
        for length in sorted({self._rounded(text) for text in texts}):
            group = [text for text in texts if self._rounded(text) == length]
            for first in range(0, len(group), ROWS):
                chunk = group[first : first + ROWS]
                token_NT = torch.zeros(ROWS, length, dtype=torch.long, device=device)
                for row, text in enumerate(chunk):
                    token_NT[row, : len(text)] = torch.tensor(text, device=device)
                states_NTC = compute(token_NT).cpu()
                found |= {text: states_NTC[row, : len(text)].clone() for row, text in enumerate(chunk)}
        return found

    def _rounded(self, text: tuple[int, ...]) -> int:
        return min(-(-len(text) // LENGTH_STEP) * LENGTH_STEP, self.context)
