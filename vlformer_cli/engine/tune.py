"""What a config asks of a model beyond its architecture: frozen parts, memory format, recomputation, compilation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlformer_cli.config import TrainConfig
from vlformer_cli.engine.distributed import World
from vlformer_cli.engine.fast import compute_in_float32
from vlformer_cli.model.pixel_decoder import EncoderLayer
from vlformer_cli.model.vl_block import VLBlock
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import VLFormerError


def freeze(model: VLFormer, beginnings: tuple[str, ...]) -> None:
    """Parameters whose names begin so get no gradient; raises VLFormerError for a beginning that fits none."""
    for beginning in beginnings:
        frozen = [p for name, p in model.named_parameters() if name.startswith(beginning)]
        if not frozen:
            raise VLFormerError(f"train.frozen: no parameter's name begins with {beginning!r}")
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise VLFormerError(f"train.frozen: {', '.join(beginnings)} leave nothing to train")


def tune(model: VLFormer, config: TrainConfig, world: World, device: torch.device) -> VLFormer:
    """The model as `config` wants it trained; parameters keep their names. Raises VLFormerError."""
    model.text_encoder.remember(config.text_cache)
    if config.sync_norm:
        _synchronise_norms(model, world, device)
    if config.channels_last:
        model.backbone.net.to(memory_format=torch.channels_last)
    if config.precision != "fp32" and device.type == "cpu":
        _depthwise_in_float32(model.backbone.net)
    if config.checkpoint_activations:
        _recompute(model)
    if config.compile:
        for layer in _layers(model):  # not the backbone: its one graph took minutes of a CPU core, for each canvas
            layer.compile()
    return model


def _synchronise_norms(model: VLFormer, world: World, device: torch.device) -> None:
    if model.backbone.freeze_norm:
        raise VLFormerError("train.sync_norm has nothing to do: set model.backbone.freeze_norm=false, or leave it out")
    if device.type != "cuda":
        raise VLFormerError(f"train.sync_norm works between GPUs only, and this run is on {device.type}: leave it out")
    if world.size > 1:
        model.backbone.net = convert_sync_batchnorm(model.backbone.net)


def _layers(model: VLFormer) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, EncoderLayer | VLBlock)]


def _depthwise_in_float32(net: nn.Module) -> None:
    """On a CPU their backward in bfloat16 takes seven times as long."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            compute_in_float32(module)


def _recompute(model: VLFormer) -> None:
    """The layers' and the backbone's activations are computed again in the backward and not kept."""
    for layer in _layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    net: Any = model.backbone.net
    net.set_grad_checkpointing(True)
