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

from vlformer_cli.engine.mask2former_names import has_counterpart, layout_of, source_names

HEADS = 8
"""Attention heads of every published Mask2Former; a checkpoint does not tell, transformers' `config.json` does."""
LEVELS = 3
SAW_COCO = {80: "COCO instances", 133: "COCO panoptic", 40: "YouTube-VIS, itself from COCO"}
"""Classes of the head -> what it was trained on, where that holds RefCOCO's evaluation pictures."""
IN_PROJ = ("query_proj", "key_proj", "value_proj")
"""The order of the thirds of torch's `in_proj_weight`."""
BOOKKEEPING = ("num_batches_tracked", "relative_position_index")
"""Tensors that are no weights."""
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
    """Without what torch's DistributedDataParallel and transformers put before every name."""
    return {name.removeprefix("module.").removeprefix("model."): tensor for name, tensor in tensors.items()}


def heads_of(path: Path) -> int:
    """Attention heads, from the `config.json` that transformers writes beside the weights, or the published ones'."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return int(config["num_attention_heads"]) if config["model_type"] == "mask2former" else HEADS
    except (OSError, ValueError, KeyError, TypeError):
        return HEADS


def fit(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], *, heads: int, their_heads: int) -> Fit:
    """`theirs` under plain names; `ours`: a state dict. Raises VLFormerError where `theirs` is no Mask2Former."""
    layout = layout_of(theirs)
    taken: dict[str, Tensor] = {}
    lacking: dict[str, str] = {}
    for name, own in ours.items():
        if name.endswith(BOOKKEEPING):
            continue
        sources = source_names(name, layout)
        reason = _obstacle(name, own, sources, theirs)
        if not reason and heads != their_heads and _has_heads(name):
            reason = f"{their_heads} attention heads there, {heads} here"
        if reason:
            lacking[name] = reason
        else:
            taken[name] = _arranged(name, sources, theirs, heads).to(own.dtype)
    _all_or_no_backbone(taken, lacking, theirs, layout)
    counted = theirs.get(source_names("decoder.heads.classes.bias", layout)[0])
    return Fit(
        layout=layout,
        taken=taken,
        lacking=lacking,
        unused=_unused(taken, lacking, theirs, layout),
        classes=None if counted is None else counted.numel() - 1,
    )


def _obstacle(name: str, own: Tensor, sources: tuple[str, ...], theirs: Mapping[str, Tensor]) -> str:
    """Why our tensor cannot be made of theirs; empty if it can."""
    if not sources:
        return "Mask2Former has no such layer"
    rows = 3 * len(own) if _is_in_proj(sources) else len(own) // len(sources)
    for source in sources:
        if source not in theirs:
            return f"the file has no {source}"
        if theirs[source].shape != (rows, *own.shape[1:]):
            return f"{source} is {tuple(theirs[source].shape)}, not {(rows, *own.shape[1:])}"
    return ""


def _is_in_proj(sources: tuple[str, ...]) -> bool:
    return ".in_proj_" in sources[0]


def _has_heads(name: str) -> bool:
    in_layer = name.startswith(("decoder.blocks.", "pixel_decoder.encoder."))
    return in_layer and any(part in name for part in (".attention.", ".to_pixels.", ".to_queries."))


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
    taken: dict[str, Tensor], lacking: dict[str, str], theirs: Mapping[str, Tensor], layout: str
) -> None:
    """Moves the backbone to `lacking` unless all of it is taken and no layer is left over: a part is of no use."""
    names = [name for name in taken if name.startswith("backbone.")]
    used = {source for name in names for source in source_names(name, layout)}
    over = (n for n in theirs if n.startswith(BACKBONES) and n not in used and has_counterpart(n, layout))
    missing = (why for name, why in lacking.items() if name.startswith("backbone."))
    why = next(missing, "") or next((f"{name} would be left over" for name in over), "")
    for name in names if why else ():
        del taken[name]
        lacking[name] = f"another backbone: {why}"


def _unused(
    taken: Mapping[str, Tensor], lacking: Mapping[str, str], theirs: Mapping[str, Tensor], layout: str
) -> dict[str, str]:
    used = {source for name in taken for source in source_names(name, layout)}
    why = {source: reason for name, reason in lacking.items() for source in source_names(name, layout)}
    left = [name for name in theirs if name not in used and not name.endswith(BOOKKEEPING)]
    return {
        n: why.get(n, f"ours has {'fewer layers' if has_counterpart(n, layout) else 'no such layer'}") for n in left
    }
