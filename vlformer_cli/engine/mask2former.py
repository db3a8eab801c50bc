"""What of a Mask2Former checkpoint fits a model of ours, and why the rest does not.

Letters: A heads, L levels, K points.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlformer_cli.engine.mask2former_names import STAGE_NORMS, has_counterpart, layout_of, source_names
from vlformer_cli.model.backbone import Backbone
from vlformer_cli.model.vlformer import VLFormer

HEADS = 8
"""Attention heads of every published Mask2Former; a checkpoint does not tell, transformers' `config.json` does."""
LEVELS = 3
SAW_COCO = {80: "COCO instances", 133: "COCO panoptic", 40: "YouTube-VIS, itself from COCO"}
"""Classes of the head -> what it was trained on, where that holds RefCOCO's evaluation pictures."""
IN_PROJ = ("query_proj", "key_proj", "value_proj")
"""The order of the thirds of torch's `in_proj_weight`."""
BOOKKEEPING = ("num_batches_tracked", "relative_position_index")
"""Tensors that are no weights."""
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of RGB in 0..255, in every config of Mask2Former: unlike others of detectron2's, its models do not read BGR."""
BACKBONES = ("backbone.", "pixel_level_module.encoder.")
"""How their names of a backbone begin; ours begin as detectron2's do."""


@dataclass(frozen=True)
class Fit:
    """By name; what is in none of them is no weight."""

    layout: str
    taken: dict[str, Tensor]
    """Ours -> the tensor as our model wants it."""
    lacking: dict[str, str]
    """Ours -> why the checkpoint has nothing for it."""
    unused: dict[str, str]
    """Theirs -> why it is not taken."""
    classes: int | None
    """That the checkpoint tells apart."""


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what torch's DistributedDataParallel and transformers put before every name; with today's names."""
    return {
        name.removeprefix("module.").removeprefix("model.").replace(".static_query.", ".query_feat."): tensor
        for name, tensor in tensors.items()
    }


def heads_of(path: Path) -> int:
    """Attention heads, from the `config.json` that transformers writes beside the weights, or the published ones'."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return int(config["num_attention_heads"]) if config["model_type"] == "mask2former" else HEADS
    except (OSError, ValueError, KeyError, TypeError):
        return HEADS


def fit(theirs: Mapping[str, Tensor], model: VLFormer, *, heads: int, their_heads: int) -> Fit:
    """`theirs` under plain names, `heads` of `model`. Raises VLFormerError where `theirs` is no Mask2Former."""
    layout = layout_of(theirs)
    quick_gelu = any(type(module).__name__ == "QuickGELU" for module in model.text_encoder.tower.modules())
    taken: dict[str, Tensor] = {}
    lacking: dict[str, str] = {}
    for name, own in model.state_dict().items():
        if name.endswith(BOOKKEEPING):
            continue
        sources = source_names(name, layout)
        reason = _obstacle(own, sources, theirs)
        if not reason and heads != their_heads and _has_heads(name):
            reason = f"{their_heads} attention heads there, {heads} here"
        if not reason and name.startswith("text_encoder.tower.") and not quick_gelu:
            reason = "their CLIP has QuickGELU: set model.text.name to ViT-B-16-quickgelu"
        if reason:
            lacking[name] = reason
        else:
            taken[name] = _arranged(name, sources, theirs, heads).to(own.dtype)
    _all_or_no_backbone(taken, lacking, theirs, layout, model.backbone)
    counted = theirs.get(source_names("decoder.heads.classes.bias", layout)[0])
    return Fit(
        layout=layout,
        taken=taken,
        lacking=lacking,
        unused=_unused(taken, lacking, theirs, layout),
        classes=None if counted is None else counted.numel() - 1,
    )


def _obstacle(own: Tensor, sources: tuple[str, ...], theirs: Mapping[str, Tensor]) -> str:
    """Why our tensor cannot be made of theirs; empty if it can."""
    if not sources:
        return "Mask2Former has no such layer"
    rows = 3 * len(own) if _is_in_proj(sources) else len(own) // len(sources)
    for source in sources:
        if source not in theirs:
            return f"the file has no {source}"
        if theirs[source].shape != (rows, *own.shape[1:]):
            return f"{tuple(theirs[source].shape)} there, {(rows, *own.shape[1:])} here"
    return ""


def _is_in_proj(sources: tuple[str, ...]) -> bool:
    return ".in_proj_" in sources[0]


def _has_heads(name: str) -> bool:
    in_layer = name.startswith(("decoder.blocks.", "pixel_decoder.encoder.", "pixel_decoder.fusion."))
    parts = (".attention.", ".attentions.", ".to_pixels.", ".to_queries.", ".to_words.")
    return in_layer and any(part in name for part in parts)


def _arranged(name: str, sources: tuple[str, ...], theirs: Mapping[str, Tensor], heads: int) -> Tensor:
    """Their tensors, which fit, as our one: joined, cut to its third, levels in our order."""
    tensor = torch.cat([theirs[source] for source in sources])
    if _is_in_proj(sources):
        return tensor.chunk(3)[IN_PROJ.index(name.split(".")[-2])]
    if name == "pixel_decoder.level_embed":
        return tensor.flip(0)
    if ".attention.offsets." in name or ".attention.weights." in name:
        tensor = tensor.unflatten(0, (heads, LEVELS, -1)).flip(1).flatten(0, 2)
    return tensor


def _all_or_no_backbone(
    taken: dict[str, Tensor], lacking: dict[str, str], theirs: Mapping[str, Tensor], layout: str, backbone: Backbone
) -> None:
    """Moves the backbone to `lacking` unless all of it is taken and no layer is left over: a part is of no use."""
    names = [name for name in taken if name.startswith("backbone.")]
    used = {source for name in names for source in source_names(name, layout)}
    rest = (name for name in theirs if name not in used and not name.endswith(BOOKKEEPING))
    over = (name for name in rest if name.startswith(BACKBONES) and has_counterpart(name, layout))
    missing = (f"{name}: {why}" for name, why in lacking.items() if name.startswith("backbone."))
    pixels = "" if _sees_the_same(backbone) else "it reads pixels of another mean and standard deviation"
    why = pixels or next(missing, "") or next((f"{name} would be left over" for name in over), "")
    for name in names if why else ():
        del taken[name]
        lacking[name] = f"another backbone: {why}"


def _sees_the_same(backbone: Backbone) -> bool:
    pairs = ((backbone.pixel_mean, PIXEL_MEAN), (backbone.pixel_std, PIXEL_STD))
    return all(torch.allclose(own.flatten(), torch.tensor(theirs), atol=0.1) for own, theirs in pairs)


def _unused(
    taken: Mapping[str, Tensor], lacking: Mapping[str, str], theirs: Mapping[str, Tensor], layout: str
) -> dict[str, str]:
    used = {source for name in taken for source in source_names(name, layout)}
    why = {source: reason for name, reason in lacking.items() for source in source_names(name, layout)}
    left = [name for name in theirs if name not in used and not name.endswith(BOOKKEEPING)]
    return {name: why.get(name) or _superfluous(name, layout) for name in left}


def _superfluous(name: str, layout: str) -> str:
    if STAGE_NORMS.fullmatch(name):
        return "ours has no norms after the backbone's stages: the features differ by them"
    return f"ours has {'fewer layers' if has_counterpart(name, layout) else 'no such layer'}"
