"""One VL-transformer block: queries look at the picture and at the words at once, then at each other.

Letters: N expressions, Q queries, P cells of one level, T word tokens, D hidden.
"""

from __future__ import annotations

from torch import Tensor, nn

from vlformer_cli.model.attention import Attention, FeedForward
from vlformer_cli.model.text_encoder import Words


class VLBlock(nn.Module):
    """Masked cross-attention to one level and cross-attention to the words, in parallel; self-attention; FFN."""

    def __init__(
        self, *, to_pixels: Attention, to_words: Attention, to_queries: Attention, feed_forward: FeedForward, dim: int
    ) -> None:
        super().__init__()
        self.to_pixels, self.to_words, self.to_queries = to_pixels, to_words, to_queries
        self.feed_forward = feed_forward
        self.cross_norm, self.self_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(
        self,
        query_NQD: Tensor,
        query_position_QD: Tensor,
        pixel_key_NPD: Tensor,
        pixel_value_NPD: Tensor,
        words: Words,
        attn_block_NQP: Tensor,
    ) -> Tensor:
        """NQD. `attn_block_NQP` True = the query may not look at the cell."""
        placed_NQD = query_NQD + query_position_QD
        pixel_update_NQD = self.to_pixels(placed_NQD, pixel_key_NPD, pixel_value_NPD, attn_block_NQP)
        word_update_NQD = self.to_words(placed_NQD, words.key, words.feat, words.pad[:, None])
        query_NQD = self.cross_norm(query_NQD + pixel_update_NQD + word_update_NQD)
        placed_NQD = query_NQD + query_position_QD
        query_NQD = self.self_norm(query_NQD + self.to_queries(placed_NQD, placed_NQD, query_NQD, None))
        return self.feed_forward(query_NQD)
