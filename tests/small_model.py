"""A model small enough for tests to train, evaluate and export in seconds."""

from vlformer_cli.config import BackboneConfig, ModelConfig, TextConfig

SMALL = ModelConfig(
    name="vlformer-small-random",
    backbone=BackboneConfig(name="tf_efficientnet_lite0"),
    text=TextConfig(name="small", frozen=False, width=32, layers=1, heads=2, embed_dim=8),
    dim=32,
    queries=3,
    blocks=2,
    heads=2,
    ffn_dim=32,
    encoder_layers=1,
    encoder_ffn_dim=32,
    encoder_points=2,
    short_side=96,
    max_side=128,
    max_tokens=40,
)
