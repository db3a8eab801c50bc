"""A model made faster for prediction on a CPU: few expressions at once, batch norms folded, channels last, bfloat16.

Letters: B images, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vlformer_cli.model.attention import FeedForward
from vlformer_cli.model.backbone import Backbone
from vlformer_cli.model.deform_attn import DeformableAttention
from vlformer_cli.model.pixel_decoder import ImageFeatures
from vlformer_cli.model.text_encoder import Words
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import UsageError, VLFormerOutput

PRECISIONS = ("fp32", "bf16")
TOLERANCE = 1e-4
"""How far a folded backbone's features may be from the original's, as a part of their largest value."""
ONEDNN = ("contract", "value_proj", "out_proj")
"""Linear layers of the encoder that oneDNN computes in float32, beside `FeedForward.hidden` and each
`DeformableAttention.where`."""
BYTES_AT_ONCE = 33_000_000
"""Of the encoder's widest tensor in one forward on a CPU. More fall out of its caches: with vlformer-r50 in float32
eight expressions at 480 x 640 take 1.1 to 1.4 times as long at once as in turn, with vlformer-tiny 0.8 times."""
FEW_PRODUCTS = 100
"""A convolution of the backbone that sums fewer products stays in float32: with as few, its weights' rounding does not
average out (masks of an earlier embedded model's examples: mean IoU with float32's 0.986 without, 0.997 with this)."""


class Fast(nn.Module):
    """A VLFormer arranged for prediction: it answers as many expressions at once as fit into a CPU's caches.

    In bfloat16, backbone and pixel decoder compute convolutions and matrix products in it. Words, blocks and heads, a
    small part of the time, stay in float32: they choose the query and the masks' edges.
    """

    def __init__(self, model: VLFormer, precision: str) -> None:
        """`model` is changed: autocast would convert its weights anew in every forward."""
        super().__init__()
        self.model, self.is_bfloat16 = model, precision == "bf16"
        self.widest = max(len(parameter) for parameter in model.pixel_decoder.parameters())
        if self.is_bfloat16:
            _in_bfloat16(model.backbone, FEW_PRODUCTS)
            _in_bfloat16(model.pixel_decoder)
        if OneDnnLinear.is_there(torch.bfloat16 if self.is_bfloat16 else torch.float32):
            for layer in model.pixel_decoder.encoder:
                _use_onednn(layer, all_layers=not self.is_bfloat16)

    def look(self, images_BCHW: Tensor, pixel_valid_BHW: Tensor) -> ImageFeatures:
        """As `VLFormer.look`."""
        with torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=self.is_bfloat16):
            return self.model.look(images_BCHW, pixel_valid_BHW)

    def ask(self, seen: ImageFeatures, token_NT: Tensor, image_index_N: Tensor) -> VLFormerOutput:
        """As `VLFormer.ask`."""
        words = self.model.text_encoder(token_NT)
        cells = sum(level.shape[1] for level in seen.levels)
        each = cells * self.widest * (2 if self.is_bfloat16 else 4)
        at_once = max(1, BYTES_AT_ONCE // each) if token_NT.device.type == "cpu" else len(token_NT)
        parts = [slice(first, first + at_once) for first in range(0, len(token_NT), at_once)]
        answers = [self._answer(seen, words.part(part), image_index_N[part]) for part in parts]
        return VLFormerOutput(
            torch.cat([answer.class_logits for answer in answers]),
            torch.cat([answer.mask_logits for answer in answers]),
        )

    def _answer(self, seen: ImageFeatures, words: Words, image_index_N: Tensor) -> VLFormerOutput:
        with torch.autocast(image_index_N.device.type, torch.bfloat16, enabled=self.is_bfloat16):
            pixels = self.model.pixel_decoder(seen, words, image_index_N)
        pixels = pixels.to(torch.float32)  # under the same name: the large tensors in bfloat16 are not needed any more
        output: VLFormerOutput = self.model.decoder(pixels, words)
        return output


def for_prediction(model: VLFormer, precision: str = "fp32", *, keep: bool = True) -> Fast:
    """A copy in eval mode that gives the same: to rounding in float32, to masks' edges in bfloat16.

    `keep` False: `model` itself is changed and used, which saves the memory of a second one.
    Raises VLFormerError for another precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}; it can be 'auto', 'fp32' or 'bf16'")
    fast = (copy.deepcopy(model) if keep else model).eval().requires_grad_(False)
    fold_batch_norms(fast.backbone)
    for part in (fast.backbone.net, fast.pixel_decoder):
        part.to(memory_format=torch.channels_last)
    return Fast(fast, precision)


def compute_in_float32(layer: nn.Module) -> None:
    """Also under autocast. Parameters keep their names, and a copy of the layer its own."""
    layer.forward = partial(_in_float32, layer.forward)


def _in_float32(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def _in_bfloat16(parent: nn.Module, few_products: int = 0) -> None:
    """Converts convolutions and matrices, but not convolutions of fewer products, which stay as they are."""
    for child in parent.children():
        if isinstance(child, nn.Conv2d) and child.weight[0].numel() < few_products:
            compute_in_float32(child)
        elif isinstance(child, nn.Conv2d | nn.Linear):
            child.bfloat16()
        else:
            _in_bfloat16(child, few_products)


class OneDnnLinear(nn.Module):
    """A linear layer, perhaps with a ReLU, by oneDNN. No gradients.

    In float32 it takes a fifth less time than MKL does on AMD's CPUs; the ReLU in the same pass saves more than half
    of the layer's time in bfloat16. The operator is the one that torch.compile uses; it is not part of torch's public
    interface, so that `is_there` tries it first and compares.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, relu: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        self.relu = relu

    def forward(self, x_NPD: Tensor) -> Tensor:
        """As `nn.Linear`, in the weight's type."""
        if x_NPD.device.type != "cpu":
            y_NPD = F.linear(x_NPD, self.weight, self.bias)
            return y_NPD.relu_() if self.relu else y_NPD
        return _onednn_linear(x_NPD.to(self.weight.dtype), self.weight, self.bias, relu=self.relu)

    @staticmethod
    @torch.no_grad()
    def is_there(dtype: torch.dtype) -> bool:
        """Whether this torch has the operator for this type, and it computes what `nn.Linear` and a ReLU do."""
        shapes = ((2, 3, 4), (5, 4), (5,))
        x, weight, bias = (torch.linspace(-1, 1, math.prod(shape)).reshape(shape).to(dtype) for shape in shapes)
        expected = F.linear(x.float(), weight.float(), bias.float())
        tolerance = 1e-5 if dtype == torch.float32 else 0.03
        try:
            plain, positive = (_onednn_linear(x, weight, bias, relu=relu).float() for relu in (False, True))
        except (AttributeError, RuntimeError, TypeError):
            return False
        close = partial(torch.allclose, rtol=0, atol=tolerance)
        return close(plain, expected) and close(positive, expected.relu())


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    return y


def _use_onednn(parent: nn.Module, *, all_layers: bool) -> None:
    """For each feed-forward layer's first half; `all_layers`: for the other linear layers too."""
    if isinstance(parent, FeedForward):
        parent.hidden = OneDnnLinear(parent.expand.weight, parent.expand.bias, relu=True)
    for name, child in list(parent.named_children()):
        if all_layers and type(child) is nn.Linear and name in ONEDNN:
            setattr(parent, name, OneDnnLinear(child.weight, child.bias))
        _use_onednn(child, all_layers=all_layers)
    if all_layers and isinstance(parent, DeformableAttention):
        parent.where = OneDnnLinear(*parent.where_matrix())


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
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU's convolutions would be too coarse
        maps = list(zip(backbone.net(noise_BCHW), folded(noise_BCHW), strict=True))
    if any(float((before - after).abs().max()) > TOLERANCE * float(before.abs().max()) for before, after in maps):
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
