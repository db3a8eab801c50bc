"""What a model's weights start from: `init` of a config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlformer_cli.config import BackboneConfig, Config, ModelConfig, TextConfig
from vlformer_cli.data.store import file_sha256
from vlformer_cli.engine.checkpoint import EMBEDDED, FORMAT, LoadedModel, find_weights, load_weights
from vlformer_cli.engine.foreign_weights import read_tensors, weights_files
from vlformer_cli.engine.mask2former import BOOKKEEPING, SAW_COCO, fit, heads_of, plain_names
from vlformer_cli.engine.mask2former_names import has_text_tower
from vlformer_cli.engine.resume import differences
from vlformer_cli.engine.weights_table import CLEAN, Fate, Initialisation, Leak, leak_of_tag, rows_of
from vlformer_cli.model.build import build_backbone, build_model, build_text_encoder
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.tree import to_tree
from vlformer_cli.types import VLFormerError

FREE_FIELDS = {
    *("name", "short_side", "max_side", "max_tokens", "temperature", "score_shift", "min_score"),
    *("backbone.weights", "backbone.freeze_norm", "backbone.frozen", "text.weights", "text.frozen"),
}
"""Fields of a model config that say how weights are come by, trained or used, and not what they compute."""


WITHOUT_RESIDUAL = (
    ", whose feed-forward layers were trained without residual: train on, or set model.ffn_residual=false"
)
"""What the table says of the original's weights in a model with residuals."""


class _Offer(NamedTuple):
    """What an `init` gives to a model, which is built already."""

    kind: str
    model: VLFormer
    built: ModelConfig
    """What `model` was built from, with the pretrained parts that it names."""
    taken: Mapping[str, Tensor] = {}
    lacking: Mapping[str, str] = {}
    """Our tensors -> why there is nothing for them."""
    unused: Mapping[str, tuple[int, str]] = {}
    """Their tensors -> how many parameters, and why they are not taken."""
    leak: tuple[Leak, str] = CLEAN
    files: tuple[Path, ...] = ()


def initial_model(config: Config) -> tuple[VLFormer, Initialisation]:
    """A new model with the weights of `config.init`, but for the parts that `init_except` names.

    Raises VLFormerError where that is nothing known, does not fit, or would run code when loaded.
    """
    offer = _offer(config)
    excepted = _excepted(offer.model, config)
    taken = {name: tensor for name, tensor in offer.taken.items() if name not in excepted}
    offer.model.load_state_dict(offer.model.state_dict() | taken)
    reasons = {**offer.lacking, **dict.fromkeys(excepted, "named in init_except")}
    ours: Iterable[tuple[str, Fate, str, int]] = (
        (name, *_origin(name, offer, taken, reasons), tensor.numel())
        for name, tensor in offer.model.state_dict().items()
        if not name.endswith(BOOKKEEPING)
    )
    theirs: Iterable[tuple[str, Fate, str, int]] = (
        (name, "not used", reason, numel) for name, (numel, reason) in offer.unused.items()
    )
    return offer.model, Initialisation(
        source=config.init or "",
        kind=offer.kind,
        leak=offer.leak[0],
        leak_reason=offer.leak[1],
        rows=(*rows_of(ours), *rows_of(theirs)),
        files=tuple((str(path), file_sha256(path)) for path in offer.files),
    )


def _offer(config: Config) -> _Offer:
    if config.init is None:
        leak = _leak_of_backbone(config.model.backbone)
        return _Offer("pretrained parts", build_model(config.model), config.model, leak=leak)
    kind, _, name = config.init.partition(":")
    if kind == "timm" and name:
        return _timm(config.model, name)
    if kind == "open_clip" and name:
        return _open_clip(config.model, name)
    path = find_weights(config.init)
    if not path.exists():
        raise VLFormerError(f"init {config.init!r} is no file, nor embedded, timm:NAME, open_clip:MODEL/TAG: mend it")
    return _vlformer(config, path) if _is_vlformers(path) else _mask2former(config, path)


def _is_vlformers(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return bool((file.metadata() or {}).get("format") == FORMAT)
    except (SafetensorError, OSError):
        return False


def _vlformer(config: Config, path: Path) -> _Offer:
    loaded = load_weights(path)
    # anchors change nothing until they are trained: weights of a model without them fit
    comparable = loaded.config if loaded.config.anchors else replace(loaded.config, anchors=config.model.anchors)
    changed = differences(to_tree(comparable), to_tree(config.model))
    changed = [difference for difference in changed if not _may_differ(difference.split()[0], config.init_except)]
    if changed:
        raise VLFormerError(f"init {config.init} is another model: {'; '.join(changed)}")
    model, theirs = build_model(config.model, pretrained=bool(config.init_except)), loaded.model.state_dict()
    own = model.state_dict().keys()
    _refuse_other_shapes(model, theirs, _excepted(model, config), config.init or "")
    taken = {name: tensor for name, tensor in theirs.items() if name in own}
    lacking = dict.fromkeys(own - taken.keys(), "the file's model has no such part")
    unused = {name: (theirs[name].numel(), "the model has no such part") for name in theirs.keys() - own}
    return _Offer("vlformer", model, config.model, taken, lacking, unused, leak=_leak_of(loaded), files=(path,))


def _may_differ(field: str, excepted: tuple[str, ...]) -> bool:
    """Whether weights fit although this field is another: it computes nothing, or its part starts anew."""
    replaced = {"backbone.": "backbone", "text.": "text_encoder"}
    parts = (part for beginning, part in replaced.items() if field.startswith(beginning))
    return field in FREE_FIELDS or any(part in excepted for part in parts)


def _refuse_other_shapes(model: VLFormer, theirs: Mapping[str, Tensor], excepted: set[str], init: str) -> None:
    """Raises VLFormerError where a tensor has another shape and `init_except` does not name it."""
    own = model.state_dict()
    misfits = [n for n in own if n in theirs and n not in excepted and own[n].shape != theirs[n].shape]
    if misfits:
        raise VLFormerError(
            f"init {init} does not fit: {misfits[0]} has shape {tuple(theirs[misfits[0]].shape)} there and "
            f"{tuple(own[misfits[0]].shape)} here ({len(misfits)} such tensors): name them in init_except"
        )


def _leak_of(loaded: LoadedModel) -> tuple[Leak, str]:
    if loaded.path == EMBEDDED:
        return "unknown", "trained on drawn scenes and 1,400 photographs of COCO, which may be evaluation images"
    start = (loaded.manifest.get("initialisation") or {}).get("leak")
    if start == "leaky":
        return "leaky", "it was trained from leaky weights itself"
    data = [source.get("name", "?") for source in loaded.manifest.get("data", [])]
    drawn = [name.startswith("scenes-") and not name.startswith("scenes-photos-") for name in data]
    if start == "clean" and drawn and all(drawn):
        return "clean", "trained on drawn scenes from clean weights"
    return "unknown", f"trained on {', '.join(data) or 'data that the file does not name'}"


def _leak_of_backbone(config: BackboneConfig) -> tuple[Leak, str]:
    """Of pretrained parts; the packages' weights are ImageNet's."""
    found = timm.get_pretrained_cfg(config.name) if config.weights == "timm" else None
    return CLEAN if found is None else leak_of_tag(found.tag)


def _timm(config: ModelConfig, name: str) -> _Offer:
    """Also the pixels' mean and standard deviation must agree: they are not part of the weights."""
    built = replace(config, backbone=replace(config.backbone, weights="none"))
    source = BackboneConfig(name=name, weights="timm")
    model, other = build_model(built), build_backbone(source, pretrained=True)
    own, found = model.backbone.net.state_dict(), other.net.state_dict()
    misfits = [n for n in sorted({*own, *found}) if n not in own or n not in found or own[n].shape != found[n].shape]
    for buffer in ("pixel_mean", "pixel_std"):
        if not torch.equal(getattr(model.backbone, buffer), getattr(other, buffer)):
            misfits.append(buffer)
    if misfits:
        raise VLFormerError(
            f"init timm:{name} does not fit the backbone {config.backbone.name!r}: {len(misfits)} tensors differ, the "
            f"first is {misfits[0]}; set model.backbone.name to {name!r}"
        )
    taken = {f"backbone.net.{n}": tensor for n, tensor in found.items()}
    return _Offer("timm", model, built, taken, leak=_leak_of_backbone(source))


def _open_clip(config: ModelConfig, name: str) -> _Offer:
    """The towers' settings must agree, and not only shapes: activations have none."""
    architecture, slash, tag = name.partition("/")
    if not slash:
        raise VLFormerError(f"init open_clip:{name} has no tag: say open_clip:MODEL/TAG, as ViT-B-16-quickgelu/openai")
    own, other = (_tower_settings(n) for n in (config.text.name, architecture))
    if other is not None and own != other:
        raise VLFormerError(
            f"init open_clip:{name} does not fit the text tower {config.text.name!r}: set model.text.name to "
            f"{architecture!r}"
        )
    source = TextConfig(name=architecture, weights=tag)
    found = build_text_encoder(source, dim=config.dim, pretrained=True).tower.state_dict()
    built = replace(config, text=replace(config.text, weights="none"))
    taken = {f"text_encoder.tower.{n}": tensor for n, tensor in found.items()}
    return _Offer("open_clip", build_model(built), built, taken, leak=_leak_of_backbone(config.backbone))


def _tower_settings(name: str) -> dict[str, Any] | None:
    settings = open_clip.get_model_config(name)
    return None if settings is None else {key: settings.get(key) for key in ("text_cfg", "quick_gelu")}


def _mask2former(config: Config, path: Path) -> _Offer:
    """Pretrained weights of the backbone and the text tower are only fetched where the checkpoint's are not taken."""
    theirs, own = plain_names(read_tensors(path)), config.model
    built = replace(own, backbone=replace(own.backbone, weights="none"))
    if has_text_tower(theirs):
        built = replace(built, text=replace(own.text, weights="none"))
    model = build_model(built)
    try:
        found = fit(theirs, model, heads=own.heads, their_heads=heads_of(path))
    except VLFormerError as error:
        raise VLFormerError(f"{path} {error}") from error
    if not found.taken:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(found.unused.items())[:3])
        raise VLFormerError(f"nothing in {path} fits the model {own.name!r}: {why}")
    if any(name.startswith("backbone.") for name in _excepted(model, config) | found.lacking.keys()):
        built = replace(built, backbone=own.backbone)
        model.backbone = build_backbone(own.backbone, pretrained=True)
    if any(name.startswith("text_encoder.tower.") for name in _excepted(model, config) | found.lacking.keys()):
        built = replace(built, text=own.text)
        model.text_encoder.tower = build_text_encoder(own.text, dim=own.dim, pretrained=True).tower
    classes = "no" if found.classes is None else found.classes
    leak: tuple[Leak, str] = ("unknown", f"its head tells {classes} classes apart, of which data is not said")
    if found.layout == "VLFormer":
        leak = ("leaky", "the original's weights start from Mask2Former's, which saw RefCOCO's evaluation pictures")
    if found.classes in SAW_COCO:
        leak = ("leaky", f"trained on {SAW_COCO[found.classes]}, RefCOCO's evaluation pictures among it")
    unused = {name: (theirs[name].numel(), reason) for name, reason in found.unused.items()}
    kind, files = f"Mask2Former of {found.layout}", tuple(weights_files(path))
    if found.layout == "VLFormer":
        kind = "original VLFormer" + (WITHOUT_RESIDUAL if own.ffn_residual else "")
    return _Offer(kind, model, built, found.taken, found.lacking, unused, leak, files)


def _excepted(model: VLFormer, config: Config) -> set[str]:
    """The tensors that `init_except` names."""
    if config.init_except and config.init is None:
        raise VLFormerError("init_except says what not to take from init, which is not given: drop it, or give init")
    state, excepted = model.state_dict(), set()
    for beginning in config.init_except:
        names = {name for name in state if name.startswith(beginning)}
        if not names:
            raise VLFormerError(f"init_except: no parameter's name begins with {beginning!r}")
        excepted |= names
    return excepted


def _origin(name: str, offer: _Offer, taken: Mapping[str, Tensor], reasons: Mapping[str, str]) -> tuple[Fate, str]:
    """`taken` or `new`, and a note."""
    if name in taken:
        return "taken", offer.kind
    backbone, text = offer.built.backbone, offer.built.text
    if name.startswith("backbone.net.") and backbone.weights != "none":
        return "taken", f"{backbone.name}, weights {backbone.weights!r}"
    if name.startswith("text_encoder.tower.") and text.name != "small" and text.weights != "none":
        return "taken", f"{text.name}, weights {text.weights!r}"
    return "new", reasons.get(name, "at random")
