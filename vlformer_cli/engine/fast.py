"""A model made faster for prediction on a CPU: batch norms folded, channels last, bfloat16 where asked for.

Letters: B images, C channels, H W pixels.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vlformer_cli.model.backbone import Backbone
from vlformer_cli.model.vlformer import ImageFeatures, VLFormer
from vlformer_cli.types import VLFormerError, VLFormerOutput

TOLERANCE = 1e-4
"""How far a folded backbone's features may be from the original's, as a part of their largest value."""


class BFloat16(nn.Module):
    """A VLFormer whose backbone and pixel decoder compute convolutions and matrix products in bfloat16.

    Words, blocks and heads, a small part of the time, stay in float32: they choose the query and the masks' edges.
    """

    def __init__(self, model: VLFormer) -> None:
        """`model` is changed: autocast would convert its weights anew in every forward."""
        super().__init__()
        for part in (model.backbone, model.pixel_decoder):
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.bfloat16()
        self.model = model

    def look(self, images_BCHW: Tensor, pixel_valid_BHW: Tensor) -> ImageFeatures:
        """As `VLFormer.look`."""
        with torch.autocast(images_BCHW.device.type, torch.bfloat16):
            return self.model.look(images_BCHW, pixel_valid_BHW)

    def ask(self, seen: ImageFeatures, token_NT: Tensor, image_index_N: Tensor) -> VLFormerOutput:
        """As `VLFormer.ask`."""
        words = self.model.text_encoder(token_NT)
        with torch.autocast(token_NT.device.type, torch.bfloat16):
            pixels = self.model.pixel_decoder(seen.maps, seen.pixel_valid, words, image_index_N)
        levels = tuple(level.float() for level in pixels.levels)
        pixels = replace(pixels, levels=levels, mask_feat=pixels.mask_feat.float())
        output: VLFormerOutput = self.model.decoder(pixels, words)
        return output


def for_prediction(model: VLFormer, precision: str = "fp32") -> VLFormer | BFloat16:
    """A copy in eval mode that gives the same: to rounding in float32, to masks' edges in bfloat16.

    Raises VLFormerError for another precision.
    """
    if precision not in ("fp32", "bf16"):
        raise VLFormerError(f"precision is {precision!r}; it can be 'fp32' or 'bf16'")
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norms(fast.backbone)
    fast.backbone.net.to(memory_format=torch.channels_last)
    return BFloat16(fast) if precision == "bf16" else fast


@torch.no_grad()
def fold_batch_norms(backbone: Backbone) -> bool:
    """Multiplies each batch norm into the convolution before it; False, and nothing changed, where there is none.

    Which convolution is before a norm is read off the order in which modules were registered, and checked on noise.
    """
    folded = copy.deepcopy(backbone.net).eval()
    if not sum(_fold_children(parent) for parent in list(folded.modules())):
        return False
    noise_BCHW = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    noise_BCHW = noise_BCHW.to(next(folded.parameters()).device)
    for before, after in zip(backbone.net(noise_BCHW), folded(noise_BCHW), strict=True):
        if float((before - after).abs().max()) > TOLERANCE * float(before.abs().max()):
            return False
    backbone.net = folded
    return True


def _fold_children(parent: nn.Module) -> int:
    """Folds each batch norm that follows a convolution among the direct children; how many there were."""
    count, last = 0, None
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(last, nn.Conv2d) and child.running_mean is not None:
            if last.out_channels != child.num_features:
                continue
            assert child.running_var is not None
            last.weight, last.bias = fuse_conv_bn_weights(
                last.weight, last.bias, child.running_mean, child.running_var, child.eps, child.weight, child.bias
            )
            setattr(parent, name, getattr(child, "act", nn.Identity()))  # timm's norms may hold the activation
            count += 1
        last = child
    return count
