"""Mask2Former's names and ours: which tensor of its checkpoints goes where.

Three layouts are known: detectron2's (github.com/facebookresearch/Mask2Former, its video checkpoints too), that of
transformers, and the original VLFormer's (github.com/nero1342/VLFormer_RIS), which is detectron2's with the parts that
read words. Mask2Former counts levels from stride 32 to 8 throughout; our pixel decoder counts from 8 to 32, our
decoder from 32 to 8. Its decoder layers and ours meet the levels in one order, so that the first ones go together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from vlformer_cli.types import VLFormerError

LAYOUTS = {
    "VLFormer": ("resizer.", "text_encoder.", "sem_seg_head.pixel_decoder.fusion_1."),
    "detectron2": ("sem_seg_head.",),
    "transformers": ("pixel_level_module.", "transformer_module."),
}
"""Each layout, and how names begin that it alone has."""

STAGE_NORMS = re.compile(r"(backbone\.norm\d|pixel_level_module\.encoder\.hidden_states_norms\.\w+)\.\w+")
"""Mask2Former norms what comes out of each stage of a Swin; timm does not, and so ours does not."""

Names = tuple[str, str, str | tuple[str, ...]]
"""Ours, detectron2's, transformers'. `#` is a number, `*` the parameter, each the same in all three; several names of
theirs are joined along the first axis. Of an `in_proj` the third is taken that ours names: query, key or value."""


def _below(ours: str, detectron2: str, transformers: str, rows: tuple[Names, ...]) -> tuple[Names, ...]:
    def name(row: Names) -> str | tuple[str, ...]:
        return transformers + row[2] if isinstance(row[2], str) else tuple(transformers + part for part in row[2])

    return tuple((ours + row[0], detectron2 + row[1], name(row)) for row in rows)


PIXEL_DECODER: tuple[Names, ...] = (
    ("inputs.0.conv.*", "input_proj.2.0.*", "input_projections.2.0.*"),
    ("inputs.0.norm.*", "input_proj.2.1.*", "input_projections.2.1.*"),
    ("inputs.1.conv.*", "input_proj.1.0.*", "input_projections.1.0.*"),
    ("inputs.1.norm.*", "input_proj.1.1.*", "input_projections.1.1.*"),
    ("inputs.2.conv.*", "input_proj.0.0.*", "input_projections.0.0.*"),
    ("inputs.2.norm.*", "input_proj.0.1.*", "input_projections.0.1.*"),
    ("level_embed", "transformer.level_embed", "level_embed"),
    ("to_mask.lateral.*", "adapter_1.*", "adapter_1.0.*"),
    ("to_mask.lateral_norm.*", "adapter_1.norm.*", "adapter_1.1.*"),
    ("to_mask.smooth.*", "layer_1.*", "layer_1.0.*"),
    ("to_mask.smooth_norm.*", "layer_1.norm.*", "layer_1.1.*"),
    ("to_mask.out.*", "mask_features.*", "mask_projection.*"),
)
ENCODER_LAYER: tuple[Names, ...] = (
    ("attention.offsets.*", "self_attn.sampling_offsets.*", "self_attn.sampling_offsets.*"),
    ("attention.weights.*", "self_attn.attention_weights.*", "self_attn.attention_weights.*"),
    ("attention.value_proj.*", "self_attn.value_proj.*", "self_attn.value_proj.*"),
    ("attention.out_proj.*", "self_attn.output_proj.*", "self_attn.output_proj.*"),
    ("norm.*", "norm1.*", "self_attn_layer_norm.*"),
    ("feed_forward.expand.*", "linear1.*", "fc1.*"),
    ("feed_forward.contract.*", "linear2.*", "fc2.*"),
    ("feed_forward.norm.*", "norm2.*", "final_layer_norm.*"),
)
DECODER: tuple[Names, ...] = (
    ("query_feat", "query_feat.weight", "queries_features.weight"),
    ("query_position", "query_embed.weight", "queries_embedder.weight"),
    ("level_embed", "level_embed.weight", "level_embed.weight"),
    ("heads.norm.*", "decoder_norm.*", "decoder.layernorm.*"),
    ("heads.mask_embed.0.*", "mask_embed.layers.0.*", "decoder.mask_predictor.mask_embedder.0.0.*"),
    ("heads.mask_embed.2.*", "mask_embed.layers.1.*", "decoder.mask_predictor.mask_embedder.1.0.*"),
    ("heads.mask_embed.4.*", "mask_embed.layers.2.*", "decoder.mask_predictor.mask_embedder.2.0.*"),
)
BLOCK: tuple[Names, ...] = (
    ("to_pixels.query_proj.*", "cross_attention_layers.#.multihead_attn.in_proj_*", "cross_attn.in_proj_*"),
    ("to_pixels.key_proj.*", "cross_attention_layers.#.multihead_attn.in_proj_*", "cross_attn.in_proj_*"),
    ("to_pixels.value_proj.*", "cross_attention_layers.#.multihead_attn.in_proj_*", "cross_attn.in_proj_*"),
    ("to_pixels.out_proj.*", "cross_attention_layers.#.multihead_attn.out_proj.*", "cross_attn.out_proj.*"),
    ("cross_norm.*", "cross_attention_layers.#.norm.*", "cross_attn_layer_norm.*"),
    ("to_queries.query_proj.*", "self_attention_layers.#.self_attn.in_proj_*", "self_attn.q_proj.*"),
    ("to_queries.key_proj.*", "self_attention_layers.#.self_attn.in_proj_*", "self_attn.k_proj.*"),
    ("to_queries.value_proj.*", "self_attention_layers.#.self_attn.in_proj_*", "self_attn.v_proj.*"),
    ("to_queries.out_proj.*", "self_attention_layers.#.self_attn.out_proj.*", "self_attn.out_proj.*"),
    ("self_norm.*", "self_attention_layers.#.norm.*", "self_attn_layer_norm.*"),
    ("feed_forward.expand.*", "ffn_layers.#.linear1.*", "fc1.*"),
    ("feed_forward.contract.*", "ffn_layers.#.linear2.*", "fc2.*"),
    ("feed_forward.norm.*", "ffn_layers.#.norm.*", "final_layer_norm.*"),
)
RESNET: tuple[Names, ...] = (  # torchvision's kind: stride in the 3x3 convolution, RGB, as timm's
    ("conv1.*", "stem.conv1.*", "embedder.embedder.convolution.*"),
    ("bn1.*", "stem.conv1.norm.*", "embedder.embedder.normalization.*"),
)
RESNET_LAYER: tuple[Names, ...] = (
    ("conv1.*", "conv1.*", "layer.0.convolution.*"),
    ("bn1.*", "conv1.norm.*", "layer.0.normalization.*"),
    ("conv2.*", "conv2.*", "layer.1.convolution.*"),
    ("bn2.*", "conv2.norm.*", "layer.1.normalization.*"),
    ("conv3.*", "conv3.*", "layer.2.convolution.*"),
    ("bn3.*", "conv3.norm.*", "layer.2.normalization.*"),
    ("downsample.0.*", "shortcut.*", "shortcut.convolution.*"),
    ("downsample.1.*", "shortcut.norm.*", "shortcut.normalization.*"),
)
SWIN: tuple[Names, ...] = (
    ("patch_embed.proj.*", "patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
    ("patch_embed.norm.*", "patch_embed.norm.*", "embeddings.norm.*"),
)
SWIN_BLOCK: tuple[Names, ...] = (
    ("norm1.*", "norm1.*", "layernorm_before.*"),
    ("norm2.*", "norm2.*", "layernorm_after.*"),
    (
        "attn.qkv.*",
        "attn.qkv.*",
        ("attention.self.query.*", "attention.self.key.*", "attention.self.value.*"),
    ),
    (
        "attn.relative_position_bias_table",
        "attn.relative_position_bias_table",
        "attention.self.relative_position_bias_table",
    ),
    ("attn.proj.*", "attn.proj.*", "attention.output.dense.*"),
    ("mlp.fc1.*", "mlp.fc1.*", "intermediate.dense.*"),
    ("mlp.fc2.*", "mlp.fc2.*", "output.dense.*"),
)
SWIN_MERGING: tuple[Names, ...] = (("reduction.*", "reduction.*", "reduction.*"), ("norm.*", "norm.*", "norm.*"))
BACKBONE: tuple[Names, ...] = (
    *RESNET,
    *(
        row
        for n in range(4)
        for row in _below(f"layer{n + 1}.#.", f"res{n + 2}.#.", f"encoder.stages.{n}.layers.#.", RESNET_LAYER)
    ),
    *SWIN,
    *_below("layers_#.blocks.#.", "layers.#.blocks.#.", "encoder.layers.#.blocks.#.", SWIN_BLOCK),
    *(  # theirs end a stage with it, timm's begin the next one
        row
        for n in range(3)
        for row in _below(
            f"layers_{n + 1}.downsample.", f"layers.{n}.downsample.", f"encoder.layers.{n}.downsample.", SWIN_MERGING
        )
    ),
)
TABLE: tuple[Names, ...] = (
    *_below("backbone.net.", "backbone.", "pixel_level_module.encoder.", BACKBONE),
    *_below("pixel_decoder.", "sem_seg_head.pixel_decoder.", "pixel_level_module.decoder.", PIXEL_DECODER),
    *_below(
        "pixel_decoder.encoder.#.",
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.#.",
        "pixel_level_module.decoder.encoder.layers.#.",
        ENCODER_LAYER,
    ),
    *_below("decoder.", "sem_seg_head.predictor.", "transformer_module.", DECODER),
    *_below("decoder.blocks.#.", "sem_seg_head.predictor.transformer_", "transformer_module.decoder.layers.#.", BLOCK),
    ("decoder.heads.classes.*", "sem_seg_head.predictor.class_embed.*", "class_predictor.*"),
)

FUSION = tuple(
    (
        f"pixel_decoder.fusion.attentions.{level}.{part}",
        f"sem_seg_head.pixel_decoder.fusion_{3 - level}.multihead_attn.{theirs}",
    )
    for level in range(3)  # theirs count from stride 32
    for part, theirs in (
        ("query_proj.*", "in_proj_*"),
        ("key_proj.*", "in_proj_*"),
        ("value_proj.*", "in_proj_*"),
        ("out_proj.*", "out_proj.*"),
    )
)
WORD_ATTENTION = "sem_seg_head.predictor.transformer_cross_attention_layers.#.multihead_attn_text."
TEXT_LAYER = "text_encoder.text_model.encoder.layers.#."
WORD_PARTS: tuple[tuple[str, str | tuple[str, ...]], ...] = (
    *((f"decoder.blocks.#.to_words.{part}_proj.*", WORD_ATTENTION + "in_proj_*") for part in ("query", "key", "value")),
    ("decoder.blocks.#.to_words.out_proj.*", WORD_ATTENTION + "out_proj.*"),
    ("text_encoder.proj.*", "resizer.layers.0.*"),
    ("text_encoder.tower.token_embedding.*", "text_encoder.text_model.embeddings.token_embedding.*"),
    ("text_encoder.tower.positional_embedding", "text_encoder.text_model.embeddings.position_embedding.weight"),
    ("text_encoder.tower.ln_final.*", "text_encoder.text_model.final_layer_norm.*"),
    *(
        (f"text_encoder.tower.transformer.resblocks.#.{ours}", f"{TEXT_LAYER}{theirs}")
        for ours, theirs in (
            ("ln_1.*", "layer_norm1.*"),
            ("ln_2.*", "layer_norm2.*"),
            ("attn.out_proj.*", "self_attn.out_proj.*"),
            ("mlp.c_fc.*", "mlp.fc1.*"),
            ("mlp.c_proj.*", "mlp.fc2.*"),
        )
    ),
    (
        "text_encoder.tower.transformer.resblocks.#.attn.in_proj_*",
        tuple(f"{TEXT_LAYER}self_attn.{part}_proj.*" for part in "qkv"),
    ),
)
"""Ours, the original VLFormer's; transformers' CLIP is its text tower."""


def layout_of(names: Iterable[str]) -> str:
    """Raises VLFormerError unless one of the layouts has such names."""
    names = list(names)
    for layout, beginnings in LAYOUTS.items():
        if any(name.startswith(beginnings) for name in names):
            return layout
    first = ", ".join(names[:3]) or "none at all"
    raise VLFormerError(
        f"holds no Mask2Former, neither detectron2's nor transformers', and no VLFormer; its tensors are: {first}"
    )


def has_text_tower(names: Iterable[str]) -> bool:
    """Whether a checkpoint brings a text tower, as the original VLFormer's does."""
    return any(name.startswith("text_encoder.") for name in names)


def source_names(ours: str, layout: str) -> tuple[str, ...]:
    """Their tensors that one of ours is made of; none where Mask2Former has no such layer.

    >>> source_names("decoder.blocks.4.to_pixels.out_proj.bias", "transformers")
    ('transformer_module.decoder.layers.4.cross_attn.out_proj.bias',)
    """
    for own, theirs in _rows(layout):
        match = _pattern(own).fullmatch(ours)
        if match:
            return tuple(_fill(name, match.groups()) for name in theirs)
    return ()


def has_counterpart(theirs: str, layout: str) -> bool:
    """Whether the table says where this tensor goes, be it that a model of ours has that layer or not."""
    return any(_pattern(name).fullmatch(theirs) for _, names in _rows(layout) for name in names)


@cache
def _rows(layout: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Our name, and theirs in this layout."""
    rows = [(row[0], row[2 if layout == "transformers" else 1]) for row in TABLE]
    if layout == "VLFormer":
        rows += [*FUSION, *WORD_PARTS]
    return tuple((own, (theirs,) if isinstance(theirs, str) else theirs) for own, theirs in rows)


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", r"(\w+)"))


def _fill(name: str, values: tuple[str, ...]) -> str:
    for value in values:
        name = re.sub(r"[#*]", value, name, count=1)
    return name
