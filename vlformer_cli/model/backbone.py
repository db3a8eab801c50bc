"""The picture branch: any timm `features_only` model with strides 4, 8, 16, 32.

Letters: B images, C channels, H W pixels, Y X cells of a feature grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlformer_cli.model.attention import downsample_valid, is_whole
from vlformer_cli.types import VLFormerError

STRIDES = (4, 8, 16, 32)
CELLWISE = (nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)
"""Modules of which each cell depends on itself alone."""


class Backbone(nn.Module):
    """Normalises pixels and computes features, each image within its own extent, so that padding changes nothing.

    The extent is the valid part rounded up to a multiple of 32. Convolutions and norms see the picture's border where
    it would be without the batch; images of equal extent run together.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        net: nn.Module,
        channels: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        freeze_norm: bool,
        channels_at_end: bool = False,
    ) -> None:
        """`mean`, `std`: of RGB in 0..1. `freeze_norm`: batch norms keep their statistics in training too.

        `channels_at_end`: `net` gives BYXC and not BCYX, as timm's Swin does.
        """
        super().__init__()
        self.net, self.channels, self.freeze_norm = net, tuple(channels), freeze_norm
        self.channels_at_end = channels_at_end
        self.whole_canvas = False
        """True: run the canvas as it is. For export, where every image fills its canvas."""
        self._inside: dict[int, Tensor] | None = None
        self.register_buffer("pixel_mean", torch.tensor(mean)[:, None, None] * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std)[:, None, None] * 255, persistent=False)

    def train(self, mode: bool = True) -> Backbone:
        """As `nn.Module.train`, but frozen norms and norms without a trainable parameter stay in eval mode."""
        super().train(mode)
        for module in self.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                trainable = any(p.requires_grad for p in module.parameters(recurse=False))
                module.train(mode and trainable and not self.freeze_norm)
        return self

    def forward(self, images_BCHW: Tensor, pixel_valid_BHW: Tensor) -> tuple[Tensor, ...]:
        """Four maps BCYX, strides 4 to 32, zero on padding. Pixels are 0..255, H and W multiples of 32."""
        pixels = (images_BCHW.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std * pixel_valid_BHW[:, None]
        if self._inside is not None:
            features = self._at_once(pixels, pixel_valid_BHW)
        else:
            features = self._run(pixels) if self.whole_canvas else self._by_extent(pixels, pixel_valid_BHW)
        if is_whole(pixel_valid_BHW):
            return tuple(features)
        return tuple(
            feature * downsample_valid(pixel_valid_BHW, stride)[:, None]
            for feature, stride in zip(features, STRIDES, strict=True)
        )

    def run_at_once(self) -> None:
        """From now on images of all extents run together, with the same results: convolutions read zeros on what lies
        outside an image's extent. For GPUs, where few large operations take less time than many small ones.

        Raises VLFormerError where the net has parts for which that does not hold.
        """
        if self.channels_at_end:
            raise VLFormerError("a backbone of windows cannot run pictures of several sizes at once")
        for name, module in self.net.named_modules():
            if isinstance(module, nn.Conv2d):
                if module.kernel_size != (1, 1):
                    module.register_forward_pre_hook(self._keep_inside)
            elif not self._is_cellwise(module):
                raise VLFormerError(
                    f"{name} ({type(module).__name__}) of the backbone may see more than convolutions let it see, so "
                    "that pictures of several sizes cannot run at once"
                )
        self._inside = {}

    def _is_cellwise(self, module: nn.Module) -> bool:
        """Whether it is a part that mixes no cells, or only holds other parts."""
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return self.freeze_norm
        return isinstance(module, CELLWISE) or next(module.children(), None) is not None

    def _keep_inside(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        assert self._inside is not None
        (x_BCYX,) = args
        return (x_BCYX * self._inside[x_BCYX.shape[-2]],)

    def _at_once(self, pixels_BCHW: Tensor, pixel_valid_BHW: Tensor) -> list[Tensor]:
        coarsest_B1YX = downsample_valid(pixel_valid_BHW, STRIDES[-1])[:, None]
        inside = coarsest_B1YX.repeat_interleave(STRIDES[-1], 2).repeat_interleave(STRIDES[-1], 3)
        self._inside = {inside.shape[-2] // stride: inside[..., ::stride, ::stride] for stride in (1, 2, *STRIDES)}
        return self._run(pixels_BCHW)

    def _run(self, pixels_BCHW: Tensor) -> list[Tensor]:
        maps = self.net(pixels_BCHW)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_at_end else list(maps)

    def _by_extent(self, pixels_BCHW: Tensor, pixel_valid_BHW: Tensor) -> list[Tensor]:
        canvas = pixels_BCHW.shape[-2:]
        groups = list(_groups_of_equal_extent(pixel_valid_BHW))
        if [extent for _, extent in groups] == [canvas]:
            return self._run(pixels_BCHW)
        parts = []
        for members, (height, width) in groups:
            maps = self._run(pixels_BCHW[members, :, :height, :width])
            margins = [((canvas[1] - width) // s, (canvas[0] - height) // s) for s in STRIDES]
            parts.append([F.pad(m, (0, x, 0, y)) for m, (x, y) in zip(maps, margins, strict=True)])
        order = torch.tensor([member for members, _ in groups for member in members], device=pixels_BCHW.device)
        return [torch.cat(maps)[order.argsort()] for maps in zip(*parts, strict=True)]


def _groups_of_equal_extent(pixel_valid_BHW: Tensor) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """(image numbers, (height, width)) for each distinct extent, in multiples of the largest stride."""
    step = STRIDES[-1]
    sizes_B2 = torch.stack([pixel_valid_BHW.any(2).sum(1), pixel_valid_BHW.any(1).sum(1)], 1)
    extents = [(int(h), int(w)) for h, w in ((sizes_B2 + step - 1) // step * step).tolist()]
    for extent in sorted(set(extents)):
        yield [image for image, other in enumerate(extents) if other == extent], extent
