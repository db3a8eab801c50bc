"""VLFormer: the picture of the architecture, as code.

    images --- backbone (once per image) ---+
                                            +-- pixel decoder -- levels, mask features --+
    tokens --- text encoder ------ words ---+                                            +-- decoder -- logits, masks
                                    +----------------------------------------------------+

Letters: B images, N expressions, T word tokens, H W pixels, Q queries, Y X cells of the stride-4 grid.
"""

from __future__ import annotations

from torch import Tensor, nn

from vlformer_cli.model.backbone import Backbone
from vlformer_cli.model.decoder import Decoder
from vlformer_cli.model.pixel_decoder import ImageFeatures, PixelDecoder
from vlformer_cli.model.text_encoder import TextEncoder
from vlformer_cli.types import Pointed, VLFormerOutput


class VLFormer(nn.Module):
    """N expressions over B images, in one forward."""

    def __init__(
        self, *, backbone: Backbone, text_encoder: TextEncoder, pixel_decoder: PixelDecoder, decoder: Decoder
    ) -> None:
        super().__init__()
        self.backbone, self.text_encoder = backbone, text_encoder
        self.pixel_decoder, self.decoder = pixel_decoder, decoder

    def forward(
        self, images_BCHW: Tensor, pixel_valid_BHW: Tensor, token_NT: Tensor, image_index_N: Tensor
    ) -> VLFormerOutput:
        """Logits and masks of every query for each expression.

        `images_BCHW`: RGB 0..255, H and W multiples of 32; `pixel_valid_BHW`: True on the picture, False on the padding
        at the right and at the bottom; `token_NT`: ids of CLIP's BPE; `image_index_N`: whose picture each asks about.
        """
        return self.ask(self.look(images_BCHW, pixel_valid_BHW), token_NT, image_index_N)

    def look(self, images_BCHW: Tensor, pixel_valid_BHW: Tensor) -> ImageFeatures:
        """The part that needs no words."""
        return self.pixel_decoder.look(self.backbone(images_BCHW, pixel_valid_BHW), pixel_valid_BHW)

    def ask(self, seen: ImageFeatures, token_NT: Tensor, image_index_N: Tensor) -> VLFormerOutput:
        """The part that needs the words; may be called many times on what `look` returned."""
        words = self.text_encoder(token_NT)
        pixels = self.pixel_decoder(seen, words, image_index_N)
        return self.decoder(pixels, words)

    def point(self, images_BCHW: Tensor, pixel_valid_BHW: Tensor, token_NT: Tensor, image_index_N: Tensor) -> Pointed:
        """What the pointer says alone; takes what `forward` takes."""
        seen = self.look(images_BCHW, pixel_valid_BHW)
        return self.pixel_decoder.point(seen, self.text_encoder(token_NT), image_index_N)

    def after_pointer(self) -> list[nn.Parameter]:
        """The parameters that `point` does not run."""
        before = (
            "backbone.",
            "text_encoder.",
            *(f"pixel_decoder.{part}." for part in ("inputs", "fusion.attentions.0", "anchors", "nearness", "pointer")),
        )
        return [parameter for name, parameter in self.named_parameters() if not name.startswith(before)]
