"""Checkpoints of the original VLFormer's code (github.com/nero1342/VLFormer_RIS), ready for eval and predict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlformer_cli.config import BackboneConfig, ModelConfig, TextConfig
from vlformer_cli.engine.foreign_weights import read_tensors
from vlformer_cli.engine.mask2former import HEADS, fit, plain_names
from vlformer_cli.engine.mask2former_names import LAYOUTS
from vlformer_cli.model.build import build_model
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import VLFormerError

DEPTHS = {6: "resnet50", 23: "resnet101"}
"""Layers of the third stage -> the backbone."""
PREDICTOR = "sem_seg_head.predictor."
ENCODER = "sem_seg_head.pixel_decoder.transformer.encoder."


def open_original(path: Path) -> tuple[VLFormer, ModelConfig] | None:
    """The model of a checkpoint of the original's code, and its config; None if the file is something else.

    The model computes what the original's code does: normalized word positions, no position in the features before the
    early fusion, and feed-forward layers without their residual, which that code drops. Raises VLFormerError if the
    file is damaged, would run code, or is a VLFormer of another kind.
    """
    theirs = plain_names(read_tensors(path))
    if not any(name.startswith(LAYOUTS["VLFormer"]) for name in theirs):
        return None
    config = _config(path, theirs)
    model = build_model(config, pretrained=False)
    found = fit(theirs, model, heads=config.heads, their_heads=HEADS)
    if found.lacking:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(found.lacking.items())[:3])
        raise VLFormerError(f"{path} is a VLFormer of another kind: {len(found.lacking)} tensors are missing ({why})")
    model.load_state_dict(model.state_dict() | found.taken)
    return model, config


def _config(path: Path, theirs: Mapping[str, Tensor]) -> ModelConfig:
    """The sizes that the tensors tell; raises VLFormerError where one of them is missing."""
    depth = _count(theirs, r"backbone\.res4\.(\d+)\.conv1\.weight")
    try:
        query_feat = theirs[f"{PREDICTOR}query_feat.weight"]
        ffn_dim = len(theirs[f"{PREDICTOR}transformer_ffn_layers.0.linear1.weight"])
        encoder_ffn_dim = len(theirs[f"{ENCODER}layers.0.linear1.weight"])
        backbone = DEPTHS[depth]
    except KeyError as error:
        raise VLFormerError(
            f"{path} is a VLFormer, but not of ResNet-50 or ResNet-101 ({error} is missing): start training from it "
            "with `vlformer train --init`"
        ) from error
    queries, dim = query_feat.shape
    return ModelConfig(
        name=f"vlformer-original-{backbone.replace('resnet', 'r')}",
        backbone=BackboneConfig(name=backbone),
        text=TextConfig(name="ViT-B-16-quickgelu"),
        dim=dim,
        queries=queries,
        blocks=_count(theirs, re.escape(PREDICTOR) + r"transformer_ffn_layers\.(\d+)\.linear1\.weight"),
        ffn_dim=ffn_dim,
        ffn_residual=False,
        encoder_layers=_count(theirs, re.escape(ENCODER) + r"layers\.(\d+)\.linear1\.weight"),
        encoder_ffn_dim=encoder_ffn_dim,
        position_in_features=False,
        word_position="normalized",
    )


def _count(theirs: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbered layers have such a tensor."""
    return sum(re.fullmatch(pattern, name) is not None for name in theirs)
