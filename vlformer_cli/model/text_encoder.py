"""The text branch: a CLIP text transformer from open_clip, down to its last hidden states after the final norm.

Letters: N expressions, T word tokens, C the tower's width, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vlformer_cli.model.position import normalized_word_position, sine_position_1d
from vlformer_cli.model.text_memory import Memory


@dataclass(frozen=True, slots=True)
class Words:
    """What the rest of the model knows of the expressions."""

    feat: Tensor
    """NTD word features."""
    key: Tensor
    """NTD word features with their positions added: what attention compares with."""
    pad: Tensor
    """NT bool, True = padding."""

    def part(self, rows: slice) -> Words:
        """Those of some of the expressions."""
        return Words(self.feat[rows], self.key[rows], self.pad[rows])


class TextEncoder(nn.Module):
    """Runs the tower once per distinct expression and projects its word features to D."""

    def __init__(
        self, *, tower: nn.Module, width: int, dim: int, frozen: bool, normalize_positions: bool = False
    ) -> None:
        """`tower`: open_clip's `TextTransformer`. `frozen`: it stays in eval mode and gets no gradient.

        `normalize_positions`: word positions are fractions of the expression, as in the original, not counts.
        """
        super().__init__()
        self.tower, self.frozen, self.normalize_positions = tower, frozen, normalize_positions
        self.proj = nn.Linear(width, dim)
        self.merge_repeats = True
        """False: every row runs, for export, where shapes may not depend on values."""
        self._memory: Memory | None = None
        if frozen:
            tower.requires_grad_(False)

    def remember(self, expressions: int) -> None:
        """In training, keeps the hidden states of so many expressions if the tower is frozen (0: none)."""
        context = int(self.tower.context_length)  # type: ignore[arg-type]
        self._memory = Memory(expressions, context=context) if self.frozen and expressions else None

    @property
    def remembers(self) -> bool:
        """Whether hidden states are kept."""
        return self._memory is not None

    def train(self, mode: bool = True) -> TextEncoder:
        """As `nn.Module.train`, but a frozen tower stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self

    def forward(self, token_NT: Tensor) -> Words:
        """`token_NT`: ids of CLIP's BPE vocabulary from start to end of text, then anything. T may be short of 77."""
        pad_NT = word_padding(token_NT)
        if self.merge_repeats:
            distinct, row_N = token_NT.unique(dim=0, return_inverse=True)
            hidden_NTC = self._hidden_states(distinct)[row_N]
        else:
            hidden_NTC = self._hidden_states(token_NT)
        feat_NTD = self.proj(hidden_NTC)
        return Words(feat=feat_NTD, key=feat_NTD + self._positions(pad_NT, feat_NTD).to(feat_NTD.dtype), pad=pad_NT)

    def _positions(self, pad_NT: Tensor, feat_NTD: Tensor) -> Tensor:
        """NTD or TD float32."""
        if self.normalize_positions:
            return normalized_word_position(pad_NT, feat_NTD.shape[2])
        return sine_position_1d(feat_NTD.shape[1], feat_NTD.shape[2], feat_NTD.device)

    def _hidden_states(self, token_NT: Tensor) -> Tensor:
        if self._memory is not None and self.training:
            with torch.no_grad():
                return self._memory.read(token_NT, partial(clip_hidden_states, self.tower))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return clip_hidden_states(self.tower, token_NT)


class FactoredEmbedding(nn.Module):
    """A narrow table and a linear layer in place of a wide table (ALBERT, arXiv 1909.11942, section 3.1)."""

    def __init__(self, *, vocab_size: int, narrow: int, width: int) -> None:
        super().__init__()
        self.table, self.widen = nn.Embedding(vocab_size, narrow), nn.Linear(narrow, width, bias=False)
        # words start as unit-sized vectors: CLIP's 0.02 is drowned by what the layers add within a few hundred steps,
        # after which all words without immediate use are one and the same (docs/log.md)
        nn.init.normal_(self.table.weight, std=0.2)
        nn.init.normal_(self.widen.weight, std=5 * narrow**-0.5)

    def forward(self, token_NT: Tensor) -> Tensor:
        """NTC."""
        return self.widen(self.table(token_NT))


def clip_hidden_states(tower: nn.Module, token_NT: Tensor) -> Tensor:
    """NTC float32: hidden states of every token after the final norm. T tokens, however few, as on the full context.

    Never under autocast, where torch's attention copies its weights once per token; a few words cost little anyway.
    """
    length = token_NT.shape[1]
    with torch.autocast(token_NT.device.type, enabled=False):
        x_NTC = tower.token_embedding(token_NT) + tower.positional_embedding[:length]  # type: ignore[operator,index]
        x_NTC = tower.transformer(x_NTC, attn_mask=tower.attn_mask[:length, :length])  # type: ignore[operator,index]
        return tower.ln_final(x_NTC)  # type: ignore[operator]


def word_padding(token_NT: Tensor) -> Tensor:
    """NT bool, True after the end of text, which has the highest id of CLIP's vocabulary (id 0 is "!", not padding)."""
    position_T = torch.arange(token_NT.shape[1], device=token_NT.device)
    return position_T > token_NT.argmax(1, keepdim=True)
