"""The model as a graph for export: plain tensors in and out, operators that exporters know, sizes that stay open.

It takes what `VLFormer.forward` takes and returns class logits NQ2 and mask logits NQYX. Every picture fills its canvas
up to a multiple of 32, as the Predictor lays it out. Tokenisation stays in Python.
"""

from __future__ import annotations

import copy

import torch
from timm.layers import PatchEmbed
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from vlformer_cli.engine.graph_swin import with_free_sizes
from vlformer_cli.model.backbone import Backbone
from vlformer_cli.model.deform_attn import DeformableAttention
from vlformer_cli.model.text_encoder import TextEncoder
from vlformer_cli.model.vlformer import VLFormer


class Exported(nn.Module):
    """The model with plain tensors as its inputs and outputs."""

    def __init__(self, model: VLFormer) -> None:
        super().__init__()
        self.model = exportable(model)

    def forward(
        self, images: Tensor, pixel_valid: Tensor, tokens: Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class logits NQ2 and mask logits NQYX."""
        output = self.model(images, pixel_valid, tokens, image_index)
        return output.class_logits, output.mask_logits


class EvenSizeConv(nn.Module):
    """timm's `Conv2dSame` for inputs whose sides are multiples of the stride, where its padding is always the same.

    The original computes its padding from the size with Python's numbers, which exporters cannot follow.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        reach = [(k - 1) * d + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        total_y, total_x = (max(0, r - s) for r, s in zip(reach, conv.stride, strict=True))
        self.margins = (total_x // 2, total_x - total_x // 2, total_y // 2, total_y - total_y // 2)

    def forward(self, x: Tensor) -> Tensor:
        """BCYX."""
        conv = self.conv
        y: Tensor = F.conv2d(F.pad(x, self.margins), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        return y


def exportable(model: VLFormer) -> VLFormer:
    """A copy that computes the same with operators that exporters know and with no shape that depends on values."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(model.backbone.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2dSame):
                setattr(parent, name, EvenSizeConv(child))
            elif (stand_in := with_free_sizes(child)) is not None:
                setattr(parent, name, stand_in)
            elif isinstance(child, PatchEmbed):
                child.dynamic_img_pad = False  # sides are multiples of 32
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            module.by_grid = True
        elif isinstance(module, TextEncoder):
            module.merge_repeats = False
        elif isinstance(module, Backbone):
            module.whole_canvas = True
    return model


def example_inputs(images: int, height: int, width: int, expressions: int, tokens: int) -> tuple[Tensor, ...]:
    """Random pictures with a few rows of padding, and token ids that end where CLIP's expressions end."""
    generator = torch.Generator().manual_seed(images + height + width + expressions + tokens)
    pixels = torch.randint(0, 256, (images, 3, height, width), generator=generator, dtype=torch.uint8)
    valid = torch.ones(images, height, width, dtype=torch.bool)
    valid[:, height - 10 :] = False
    ids = torch.randint(300, 40_000, (expressions, tokens), generator=generator)
    ids[:, 0], ids[:, -1] = 49_406, 49_407
    return pixels, valid, ids, torch.arange(expressions) % images


def dynamic_shapes() -> dict[str, dict[int, object]]:
    """All of images, their height and width, expressions and tokens."""
    free = Dim.DYNAMIC
    return {
        "images": {0: free, 2: free, 3: free},
        "pixel_valid": {0: free, 1: free, 2: free},
        "tokens": {0: free, 1: free},
        "image_index": {0: free},
    }
