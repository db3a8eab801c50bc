"""Every file in configs/ is loaded and built; what a user gets wrong in one is named with its remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import timm
import torch
from skimage import data
from small_model import SMALL

from vlformer_cli.config import Config, LossConfig, ModelConfig, TrainConfig, load_config
from vlformer_cli.data.sources.published import PUBLISHED, resolve_dataset
from vlformer_cli.engine.weights_table import leak_of_tag
from vlformer_cli.loss.build import build_criterion
from vlformer_cli.model.build import build_backbone, build_model, load_in_order, package_weights
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.tree import from_tree, to_tree
from vlformer_cli.types import VLFormerError

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
MILLIONS = {
    # r50: what the original's code counts; the others share all but the backbone
    "vlformer-r50": {
        "backbone.net": 23.5,
        "text_encoder.tower": 63.2,
        "text_encoder.proj": 0.13,
        "pixel_decoder": 4.6,
        "decoder": 11.3,
    },
    "vlformer-r101": {"backbone.net": 42.5, "text_encoder.tower": 63.2, "decoder": 11.3},
    "vlformer-swin-b": {"backbone.net": 86.9, "text_encoder.tower": 63.2, "decoder": 11.3},
}
"""By how the names of models begin."""
PREPARED = {"refcoco": "refcoco-unc", "refcocoplus": "refcoco+-unc", "refcocog": "refcocog-umd"}
RECIPES = {
    *(f"{data}-{size}" for data in PREPARED for size in ("r50", "r101")),
    "refcoco-r50-leaky",
    "mixed-swin-b",
}


def count(model: VLFormer, part: str) -> float:
    return sum(p.numel() for p in model.get_submodule(part).parameters()) / 1e6


def is_of_the_family(path: Path) -> bool:
    """Whether it trains on RefCOCO, RefCOCO+ or G-Ref."""
    data = load_config(path).data
    return data is not None and any("refcoco" in source.path for source in data.train)


def test_there_are_configs_for_every_size_and_data_set() -> None:
    names = {load_config(path).model.name for path in FILES}
    assert names >= {"vlformer-r50", "vlformer-r101", "vlformer-swin-b", "vlformer-tiny"}
    assert len(names) == len(FILES)
    assert {path.stem for path in FILES} >= RECIPES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_is_built_and_its_first_line_runs_it(path: Path) -> None:
    config = load_config(path)
    assert path.read_text().splitlines()[0] == f"# vlformer train --config configs/{path.name}"
    assert from_tree(Config, to_tree(config)) == config
    model = build_model(config.model, pretrained=False)
    build_criterion(config.loss)
    sizes = [parts for name, parts in MILLIONS.items() if config.model.name.startswith(name)]
    assert len(sizes) == (not config.model.name.startswith("vlformer-tiny"))
    for part, millions in sizes[0].items() if sizes else ():
        assert count(model, part) == pytest.approx(millions, rel=0.02), part


@pytest.mark.parametrize("path", list(filter(is_of_the_family, FILES)), ids=lambda path: path.stem)
def test_the_second_line_says_clean_or_leaky_as_the_start_is(path: Path) -> None:
    config, line = load_config(path), path.read_text().splitlines()[1]
    (mark,) = {"clean", "leaky"} & set(re.findall(r"[a-z]+", line))
    backbone = timm.get_pretrained_cfg(config.model.backbone.name)
    parts_are_clean = leak_of_tag(backbone.tag)[0] == "clean" and config.model.text.weights == "openai"
    starts_from_parts = config.init is None or config.init.startswith(("timm:", "open_clip:"))
    assert mark == ("clean" if parts_are_clean and starts_from_parts else "leaky")
    assert (mark == "leaky") == path.stem.endswith("leaky")


def test_the_recipe_is_the_originals_but_for_the_data_and_the_backbone() -> None:
    """The defaults are the original's, and so the files say nothing else, but for mixed precision."""
    for path in FILES:
        if path.stem in RECIPES - {"mixed-swin-b"}:
            config = load_config(path)
            assert config.data is not None
            assert config.loss == LossConfig()
            assert replace(config.train, precision="auto") == TrainConfig()
            assert (config.data.images_per_step, config.data.short_sides) == (8, (360, 480))
            assert config.data.train[0].path == config.data.val.path == PREPARED[path.stem.split("-")[0]]  # type: ignore[union-attr]


def test_data_sets_are_named_as_prepare_data_names_their_folders() -> None:
    for path in filter(is_of_the_family, FILES):
        data = load_config(path).data
        assert data is not None
        for source in (*data.train, *([data.val] if data.val else [])):
            dataset, _, split_by = Path(source.path).name.rpartition("-")
            assert resolve_dataset(dataset, split_by) == (dataset, split_by)
            assert source.split in PUBLISHED[dataset, split_by]


def test_the_mixed_recipe_trains_on_all_three_averages_and_anneals() -> None:
    config = load_config(FOLDER / "mixed-swin-b.yaml")
    assert config.data is not None
    assert {Path(source.path).name for source in config.data.train} == set(PREPARED.values())
    assert all(Path(source.path).parent.name == "mixed" for source in config.data.train)
    assert "--exclude-eval-images" in (FOLDER / "mixed-swin-b.yaml").read_text()
    assert (config.train.schedule, config.train.ema > 0.999) == ("cosine", True)


def test_the_tiny_model_is_small() -> None:
    model = build_model(load_config(FOLDER / "tiny.yaml").model, pretrained=False)
    assert sum(p.numel() for p in model.parameters()) < 7e6


def test_overrides_reach_every_depth() -> None:
    config = load_config(
        FOLDER / "tiny.yaml",
        ["train.steps=7", "train.lr=2e-4", "model.backbone.frozen=[]", "data.train.0.path=here", "data.val=null"],
    )
    assert (config.train.steps, config.train.lr, config.model.backbone.frozen) == (7, 2e-4, ())
    assert config.data is not None
    assert (config.data.train[0].path, config.data.val) == ("here", None)
    assert config.train.warmup == load_config(FOLDER / "tiny.yaml").train.warmup


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=7", "no field 'step' in TrainConfig, did you mean 'steps'?"),
        ("train.steps=many", "train: steps takes int, not 'many'"),
        ("train.steps=0", "train: steps is 0: at least 1"),
        ("train.lr=nan", "lr is nan: at least 1e-12"),
        ("train.drop_at=[0.5, 70]", "drop_at[1] is 70.0: from 0 to 1"),
        ("data.images_per_step=-2", "images_per_step is -2: at least 1"),
        ("model.queries=0", "queries is 0: at least 1"),
        ("loss.importance=2", "importance is 2.0: from 0 to 1"),
        ("train.steps=true", "steps takes int, not True"),
        ("train.schedule=linear", "schedule is 'linear'; it can be 'step', 'cosine'"),
        ("train.drop_at=0.5", "drop_at takes a list, not 0.5"),
        ("train=5", "TrainConfig takes fields, not 5"),
        ("data.train.7.path=x", "--set 'data.train.7.path=x': no such field"),
        ("train.steps", "--set 'train.steps' is not key=value"),
        ("model.queries=[", "--set 'model.queries=['"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(VLFormerError) as caught:
        load_config(FOLDER / "tiny.yaml", [override])
    assert message in " ".join(str(caught.value).split())


def test_files_that_are_no_configs(tmp_path: Path) -> None:
    for text, message in (("a: [", "is not YAML"), ("5", "holds no fields"), ("{}", "lacks model"), ("\xff", "holds")):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(VLFormerError, match=message):
            load_config(path)
    with pytest.raises(VLFormerError, match="no config file at"):
        load_config(tmp_path / "missing.yaml")


def built(config: ModelConfig) -> None:
    build_model(config, pretrained=False)


def test_models_that_cannot_be_built_are_named() -> None:
    backbone = SMALL.backbone
    with pytest.raises(VLFormerError, match=r"timm gave no backbone 'resnet5'"):
        built(replace(SMALL, backbone=replace(backbone, name="resnet5")))
    with pytest.raises(VLFormerError, match=r"has strides \[.*\], not \[4, 8, 16, 32\]"):
        built(replace(SMALL, backbone=replace(backbone, name="vit_tiny_patch16_224")))
    with pytest.raises(VLFormerError, match=r"no parameter's name begins with 'block1'"):
        built(replace(SMALL, backbone=replace(backbone, frozen=("block1",))))
    with pytest.raises(VLFormerError, match=r"backbone.weights is 'imagenet'"):
        built(replace(SMALL, backbone=replace(backbone, weights="imagenet")))
    with pytest.raises(VLFormerError, match=r"model.dim is 40"):
        built(replace(SMALL, dim=40))
    with pytest.raises(VLFormerError, match=r"model.mask_dim is 100; it must be a multiple of 32"):
        built(replace(SMALL, mask_dim=100))
    with pytest.raises(VLFormerError, match=r"model.text.width is \d+; it must be a multiple of model.text.heads: 7"):
        built(replace(SMALL, text=replace(SMALL.text, heads=7)))
    with pytest.raises(VLFormerError, match=r"model.max_tokens is 78; small reads 77 at most"):
        built(replace(SMALL, max_tokens=78))
    with pytest.raises(VLFormerError, match=r"no package carries weights for 'resnet18'"):
        package_weights("resnet18")


def test_the_packages_weights_see_a_cat_and_an_espresso() -> None:
    """The whole classifier on two of scikit-image's photographs: only layers in their right places give that."""
    net = timm.create_model("tf_efficientnet_lite0")
    load_in_order(net, package_weights("tf_efficientnet_lite0"))
    for photo, classes in ((data.chelsea(), {281, 282, 285}), (data.coffee(), {967})):
        pixels = cv2.resize(photo, (320, 224), interpolation=cv2.INTER_AREA).astype("float32")
        logits = net.eval()(torch.from_numpy((pixels - 127.5) / 127.5).permute(2, 0, 1)[None])
        assert int(logits.argmax()) in classes


def test_the_packages_weights_fill_every_layer_of_the_backbone() -> None:
    tensors = package_weights("tf_efficientnet_lite0")
    net = build_backbone(replace(SMALL.backbone, weights="package"), pretrained=True).net
    random = build_backbone(SMALL.backbone, pretrained=False).net.state_dict()
    own = net.state_dict()
    for (name, tensor), source in zip(own.items(), tensors, strict=False):
        assert torch.equal(tensor, source), name
        assert name.endswith("num_batches_tracked") or not torch.equal(tensor, random[name]), name
    with pytest.raises(VLFormerError, match="do not fit"):
        load_in_order(net, tensors[1:])
    with pytest.raises(VLFormerError, match="hold 5 tensors"):
        load_in_order(net, tensors[:5])
